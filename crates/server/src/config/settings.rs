//! What was set, and where: the command line, the environment or the configuration file.
//!
//! As in etcd a flag beats its environment variable, and a configuration file (`--config-file`, or `ETCD_CONFIG_FILE`)
//! replaces both. Every value is checked here to be one that its flag can have; what the values mean together is checked
//! by [`super::Config::from_settings`]. Logging is not set up yet while this is read, so what is worth telling is kept as
//! [`Note`]s.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::flags::{self, Effect, Flag, Former, Kind};
use super::{file, value};

/// The flag that names the configuration file.
const CONFIG_FILE: &str = "config-file";
/// The flag whose values add up.
const FEATURE_GATES: &str = "feature-gates";
/// What the names of all environment variables of flags begin with.
const PREFIX: &str = "ETCD_";
/// Variables that begin like those of flags and belong to somebody else: etcd's clients and etcd's choice of processors.
const FOREIGN: &[&str] = &["ETCD_UNSUPPORTED_ARCH"];

/// What somebody wants of `serve`.
#[derive(Debug)]
pub enum Asked {
    /// A node with these settings.
    Serve(Settings),
    /// The list of flags.
    Help,
    /// The version.
    Version,
}

/// The flags that were set, with their values as text.
#[derive(Debug, Default)]
pub struct Settings {
    values: BTreeMap<&'static str, String>,
    notes: Vec<Note>,
}

/// Something about the settings that is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A variable was used.
    Variable(String),
    /// A variable that no flag belongs to.
    UnknownVariable(String),
    /// A variable that the command line overrules.
    Shadowed(String),
    /// A configuration file was used, and nothing else.
    File(PathBuf),
    /// A key of the configuration file that no flag belongs to.
    UnknownKey(String),
    /// A flag that has another name now.
    Former {
        /// As given.
        given: String,
        /// What to write instead.
        now: String,
    },
    /// A configuration file says where to listen for clients, and not what they are told.
    DefaultAdvertised,
    /// A variable or a key that asks for what is gone from etcd, which passes over it as well.
    Gone {
        /// The variable, or the key and its file.
        place: String,
        /// What is gone.
        why: &'static str,
    },
    /// A flag that was set and changes nothing.
    Nothing {
        /// Without dashes.
        flag: &'static str,
        /// Why.
        why: &'static str,
    },
}

/// Why settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// No flag has that name.
    #[error("unknown flag --{0}: `hadron serve --help` lists all flags")]
    Unknown(String),
    /// Something that is no flag.
    #[error("{0:?} is not a valid flag")]
    NotAFlag(String),
    /// The last flag lacks its value.
    #[error("--{0} needs a value")]
    Valueless(String),
    /// A value that the flag cannot have.
    #[error("{place}: expected {expected}, got {value:?}")]
    Value {
        /// The flag, the variable, or the key and its file.
        place: String,
        /// What a value looks like.
        expected: String,
        /// As given.
        value: String,
    },
    /// An argument or a variable that is not UTF-8.
    #[error("{0:?} is not valid UTF-8")]
    Utf8(OsString),
    /// The configuration file cannot be used.
    #[error("the configuration file {file}: {error}")]
    File {
        /// Where it is.
        file: PathBuf,
        /// What is wrong.
        error: file::FileError,
    },
}

impl Settings {
    /// Reads arguments (without the program's name) and environment, or the file that they name.
    ///
    /// # Errors
    /// The first thing that cannot be understood.
    pub fn read(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Asked, SettingError> {
        let mut settings = Settings::default();
        if let Some(other) = settings.read_arguments(arguments)? {
            return Ok(other);
        }
        let environment: Vec<(OsString, OsString)> =
            environment.into_iter().filter(|(name, value)| is_ours(name, value)).collect();
        let file = match settings.values.get(CONFIG_FILE) {
            Some(file) => Some(OsString::from(file)),
            None => {
                let named = environment.iter().find(|(name, _)| *name == *"ETCD_CONFIG_FILE");
                named.map(|(_, file)| file.clone())
            }
        };
        match file.filter(|file| !file.is_empty()) {
            Some(file) => settings = Settings::read_file(Path::new(&file))?,
            None => settings.read_environment(environment)?,
        }
        Ok(Asked::Serve(settings))
    }

    /// Reads flags as Go's `flag` does: one dash or two, the value after `=` or as the next argument.
    fn read_arguments(
        &mut self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Asked>, SettingError> {
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let argument = argument.into_string().map_err(SettingError::Utf8)?;
            let dashless = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let Some(body) = dashless.filter(|body| !body.is_empty() && !body.starts_with(['-', '='])) else {
                return Err(SettingError::NotAFlag(argument));
            };
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            match name {
                "help" | "h" => return Ok(Some(Asked::Help)),
                "version" if value.as_deref().is_none_or(|value| value::switch(value) == Some(true)) => {
                    return Ok(Some(Asked::Version));
                }
                "version" => continue,
                _ => {}
            }
            let (flag, feature) = self.look_up(name)?;
            let is_switch = flag.kind == Kind::Switch || feature.is_some();
            let value = match value {
                Some(value) => value,
                None if is_switch => "true".to_owned(),
                None => {
                    let next = arguments.next().ok_or_else(|| SettingError::Valueless(name.to_owned()))?;
                    next.into_string().map_err(SettingError::Utf8)?
                }
            };
            self.set(&format!("--{name}"), flag, feature, value)?;
        }
        Ok(None)
    }

    fn read_environment(&mut self, variables: Vec<(OsString, OsString)>) -> Result<(), SettingError> {
        let from_arguments = std::mem::take(&mut self.values);
        for (variable, value) in variables {
            let variable = variable.into_string().map_err(SettingError::Utf8)?;
            let found = flag_of(&variable).and_then(|name| self.look_up(&name).ok());
            let Some((flag, feature)) = found else {
                self.notes.push(Note::UnknownVariable(variable));
                continue;
            };
            if from_arguments.contains_key(flag.name) {
                self.notes.push(Note::Shadowed(variable));
                continue;
            }
            let value = value.into_string().map_err(SettingError::Utf8)?;
            if self.set_or_ignore(&variable, flag, feature, value)? {
                self.notes.push(Note::Variable(variable));
            }
        }
        self.values.extend(from_arguments);
        Ok(())
    }

    fn read_file(path: &Path) -> Result<Settings, SettingError> {
        let failed = |error| SettingError::File { file: path.to_owned(), error };
        let mut settings = Settings::default();
        settings.notes.push(Note::File(path.to_owned()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.into()))?;
        for (key, value) in file::read(&text).map_err(failed)? {
            let Ok((flag, feature)) = settings.look_up(&key) else {
                settings.notes.push(Note::UnknownKey(key));
                continue;
            };
            let place = format!("{key} in {}", path.display());
            let kind = if feature.is_some() { Kind::Switch } else { flag.kind };
            settings.set_or_ignore(&place, flag, feature, value.text_for(kind))?;
        }
        if settings.given("listen-client-urls").is_some() && settings.given("advertise-client-urls").is_none()
        {
            settings.notes.push(Note::DefaultAdvertised);
        }
        Ok(settings)
    }

    /// The flag of that name, now or formerly, and the feature that the name stands for.
    fn look_up(&mut self, name: &str) -> Result<(&'static Flag, Option<&'static str>), SettingError> {
        if let Some(flag) = flags::find(name) {
            return Ok((flag, None));
        }
        let former = flags::former(name).ok_or_else(|| SettingError::Unknown(name.to_owned()))?;
        let (flag, feature, now) = match former {
            Former::Flag(flag) => (flag, None, format!("--{flag}")),
            Former::Gate(feature) => {
                (FEATURE_GATES, Some(feature), format!("--feature-gates={feature}=true"))
            }
        };
        self.notes.push(Note::Former { given: name.to_owned(), now });
        let flag = flags::find(flag).ok_or_else(|| SettingError::Unknown(name.to_owned()))?;
        Ok((flag, feature))
    }

    /// Sets a flag to what a variable or a file says, where etcd passes over what it does not know any more. Whether that counts.
    fn set_or_ignore(
        &mut self,
        place: &str,
        flag: &'static Flag,
        feature: Option<&'static str>,
        value: String,
    ) -> Result<bool, SettingError> {
        if let Effect::Gone(why) = flag.effect
            && !(flag.accepts(&value) && flag.is_default(&value))
        {
            self.notes.push(Note::Gone { place: place.to_owned(), why });
            return Ok(false);
        }
        self.set(place, flag, feature, value).map(|()| true)
    }

    /// Sets a flag, or adds to it if its values add up; `place` is where the value stood.
    fn set(
        &mut self,
        place: &str,
        flag: &'static Flag,
        feature: Option<&'static str>,
        value: String,
    ) -> Result<(), SettingError> {
        let refuse = |expected: String, value: String| {
            Err(SettingError::Value { place: place.to_owned(), expected, value })
        };
        let value = match feature {
            Some(feature) if value::switch(&value).is_some() => format!("{feature}={value}"),
            Some(_) => return refuse("true or false".to_owned(), value),
            None => value,
        };
        if !flag.accepts(&value) {
            return refuse(flag.expected(), value);
        }
        if let Effect::Nothing(why) = flag.effect
            && !flag.is_default(&value)
        {
            self.notes.push(Note::Nothing { flag: flag.name, why });
        }
        let before = self.values.remove(flag.name).filter(|_| flag.name == FEATURE_GATES);
        self.values.insert(flag.name, before.map_or(value.clone(), |before| format!("{before},{value}")));
        Ok(())
    }

    /// The value that was given for a flag, if it is not empty.
    pub(super) fn given(&self, name: &'static str) -> Option<&str> {
        debug_assert!(flags::find(name).is_some(), "no flag --{name}");
        self.values.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// The value of a flag, or its default, as text.
    pub(super) fn text(&self, name: &'static str) -> &str {
        let default = || flags::find(name).map_or("", |flag| flag.default);
        self.values.get(name).map_or_else(default, String::as_str)
    }

    /// What was set to values other than the defaults.
    pub(super) fn changed(&self) -> impl Iterator<Item = (&'static Flag, &str)> {
        let all = self.values.iter().filter_map(|(name, value)| Some((flags::find(name)?, value.as_str())));
        all.filter(|(flag, value)| !flag.is_default(value))
    }

    /// Whether they are those of a configuration file.
    pub(super) fn are_of_file(&self) -> bool {
        self.notes.iter().any(|note| matches!(note, Note::File(_)))
    }

    /// What is worth telling, in the order in which it was found.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// Whether a variable is there for a flag: an empty one counts as none, as in etcd.
fn is_ours(name: &OsString, value: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
        && !value.is_empty()
        && !FOREIGN.iter().any(|foreign| *name == **foreign)
}

/// The name of the flag that a variable would be for. `None` if no flag's variable is spelled like that: names are compared
/// as they are, as in etcd.
fn flag_of(variable: &str) -> Option<String> {
    let name = variable.strip_prefix(PREFIX)?;
    let is_spelled_so = !name.contains(|letter: char| letter.is_lowercase() || letter == '-');
    is_spelled_so.then(|| name.to_lowercase().replace('_', "-"))
}

impl Note {
    /// Logs it, in etcd's words where etcd has some. Values are left out, since some of them are secrets.
    pub fn tell(&self) {
        match self {
            Note::Variable(name) => info!(variable_name = name, "recognized and used environment variable"),
            Note::UnknownVariable(name) => {
                warn!(environment_variable = name, "unrecognized environment variable");
            }
            Note::Shadowed(name) => warn!(
                environment_variable = name,
                "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag)"
            ),
            Note::File(path) => warn!(
                path = %path.display(),
                "loaded server configuration, other configuration command line flags and environment variables will be ignored if provided"
            ),
            Note::UnknownKey(key) => warn!(key, "unrecognized key in the configuration file"),
            Note::Former { given, now } => warn!("--{given} is deprecated, use {now} instead"),
            Note::DefaultAdvertised => warn!(
                "listen-client-urls is given without advertise-client-urls: clients that ask for the members are told the default \
                 URL, which leads them to their own machine"
            ),
            Note::Gone { place, why } => warn!(place, why, "this is ignored"),
            Note::Nothing { flag, why } => info!(flag, why, "this flag changes nothing here"),
        }
    }
}

#[cfg(test)]
mod tests;
