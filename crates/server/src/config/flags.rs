//! Every flag of `hadron serve`: etcd's, with etcd's names and defaults, and a few of Hadron's own.
//!
//! One table says for each flag what it is, and what it does here: it works, it is accepted and changes nothing (with the
//! reason), or it is refused because what it asks for is gone from etcd. Command line, environment, configuration file,
//! help and `docs/flags.md` all follow from the table. Invariant: a flag is never ignored silently.

mod table;
#[cfg(test)]
mod tests;

pub use table::TABLE;

/// A flag and what becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Flag {
    /// Without dashes, as etcd spells it.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// Its value when nobody gives one; empty when that depends on other flags, or is nothing.
    pub default: &'static str,
    /// What it is for, in one line.
    pub help: &'static str,
    /// What it does here.
    pub effect: Effect,
}

/// What the values of a flag are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// On or off. Alone on the command line it means on.
    Switch,
    /// A whole number.
    Number,
    /// A time span as Go writes it, such as `1m30s`.
    Duration,
    /// Any text.
    Text,
    /// Texts, separated by commas.
    List,
    /// One of these.
    Choice(&'static [&'static str]),
    /// One of these, in letters of any case.
    AnyCase(&'static [&'static str]),
}

/// What a flag does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// What it does in etcd.
    Works,
    /// Nothing, for this reason. Its values are checked all the same.
    Nothing(&'static str),
    /// Values other than the default are refused, for this reason.
    Refused(&'static str),
    /// The same on the command line alone: in a variable or a configuration file it is told, and ignored.
    Gone(&'static str),
}

/// Flags that belong together, with a heading.
pub type Section = (&'static str, &'static [Flag]);

impl Flag {
    /// The environment variable that stands for the flag.
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// Whether a value asks for nothing but what happens without it.
    pub fn is_default(&self, value: &str) -> bool {
        let is_off = |text: &str| matches!(super::value::switch(text), None | Some(false));
        match self.kind {
            Kind::Switch => is_off(value) == is_off(self.default),
            Kind::Duration => super::value::duration(value) == super::value::duration(self.default),
            Kind::AnyCase(_) => value.is_empty() || value.eq_ignore_ascii_case(self.default),
            _ => value.is_empty() || value == self.default,
        }
    }

    /// Whether a value is one that the flag can have.
    pub fn accepts(&self, value: &str) -> bool {
        match self.kind {
            Kind::Switch => super::value::switch(value).is_some(),
            Kind::Number => super::value::number(value).is_some(),
            Kind::Duration => super::value::duration(value).is_some(),
            Kind::Choice(choices) => choices.contains(&value),
            Kind::AnyCase(choices) => choices.iter().any(|choice| choice.eq_ignore_ascii_case(value)),
            Kind::Text | Kind::List => true,
        }
    }

    /// What a value of the flag looks like, for error messages.
    pub fn expected(&self) -> String {
        match self.kind {
            Kind::Switch => "true or false".to_owned(),
            Kind::Number => "a whole number".to_owned(),
            Kind::Duration => "a time span such as 500ms, 10s or 1h".to_owned(),
            Kind::Text => "a text".to_owned(),
            Kind::List => "texts separated by commas".to_owned(),
            Kind::Choice(choices) | Kind::AnyCase(choices) => {
                // Nobody is told to give an empty one.
                let named: Vec<&str> = choices.iter().copied().filter(|choice| !choice.is_empty()).collect();
                named.join(" or ")
            }
        }
    }
}

/// All flags, in the order of the table.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    TABLE.iter().flat_map(|(_, flags)| flags.iter())
}

/// The flag of that name.
pub fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

/// What a name of etcd 3.5 and 3.6 means that etcd has dropped since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// Another name of this flag.
    Flag(&'static str),
    /// A feature gate: the flag `--feature-gates` with this feature.
    Gate(&'static str),
}

/// Looks a former name up: most begin with `experimental-`, and the flag lost that when it became stable.
pub fn former(name: &str) -> Option<Former> {
    let rest = name.strip_prefix("experimental-")?;
    let gate = table::GATES.iter().find(|(former, _)| *former == rest).map(|(_, gate)| Former::Gate(gate));
    let flag = || table::FORMERLY_EXPERIMENTAL.iter().find(|flag| **flag == rest).copied().map(Former::Flag);
    gate.or_else(flag)
}

/// The features of `--feature-gates` that etcd knows.
pub const FEATURES: &[&str] = &[
    "AllAlpha",
    "AllBeta",
    "CompactHashCheck",
    "FastLeaseKeepAlive",
    "InitialCorruptCheck",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "PriorityRequest",
    "SetMemberLocalAddr",
    "StopGRPCServiceOnDefrag",
    "TxnModeWriteWithSharedBuffer",
];

/// What `--help` says.
pub fn help() -> String {
    let mut text = String::from(
        "Usage: hadron serve [flags]\n\nEvery flag is also an environment variable (--data-dir is ETCD_DATA_DIR) and a key of the file \
         that --config-file\nnames. A flag beats the environment; a configuration file replaces both.\n",
    );
    for (heading, flags) in TABLE {
        text.push_str(&format!("\n{heading}:\n"));
        for flag in *flags {
            text.push_str(&format!("  --{} '{}'\n    {}.\n", flag.name, flag.default, flag.help));
            match flag.effect {
                Effect::Works => {}
                Effect::Nothing(why) => text.push_str(&format!("    Changes nothing here: {why}.\n")),
                Effect::Refused(why) | Effect::Gone(why) => {
                    text.push_str(&format!("    Not supported: {why}.\n"));
                }
            }
        }
    }
    text
}
