//! Questions to DNS that the system's resolver cannot be asked: where a service is (SRV records).
//!
//! The servers are those of `/etc/resolv.conf`, whose search list counts too, as it does in Go. `HADRON_DNS_SERVER=IP:PORT`
//! names another one. What hosts are called in the answers is left to the system's resolver.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr as _;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, Name};
use domain::rdata::Srv;
use domain::resolv::StubResolver;
use domain::resolv::stub::conf::{ResolvConf, ResolvOptions, ServerConf, Transport};

/// Names the server to ask, instead of those of the system.
pub(crate) const SERVER_VARIABLE: &str = "HADRON_DNS_SERVER";
const SYSTEM_CONFIGURATION: &str = "/etc/resolv.conf";

/// One of the places where a service is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Those with the smallest are to be used, as long as one of them answers.
    pub(crate) priority: u16,
    /// Name of the host, without a dot at its end.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
    /// How often it is to be used, among those of its priority.
    pub(crate) weight: u16,
}

/// A service that was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotFound {
    name: String,
    why: String,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lookup {}: {}", self.name, self.why)
    }
}

/// What DNS says to a name that does not exist, or is of something else. In Go's words.
const NO_SUCH_HOST: &str = "no such host";

/// The places of the TCP service `service` of `domain`, ordered by priority and host; never none.
///
/// # Errors
/// There is no such service, or no server answers.
pub(crate) async fn places(service: &str, domain: &str) -> Result<Vec<Place>, NotFound> {
    let name = format!("_{service}._tcp.{domain}");
    let failed = |why: String| NotFound { name: name.clone(), why };
    let conf = configuration().map_err(failed)?;
    let candidates = candidates(&name, &conf.options);
    let servers: Vec<String> = conf.servers.iter().map(|server| server.addr.to_string()).collect();
    let resolver = StubResolver::from_conf(conf);
    let mut why = NO_SUCH_HOST.to_owned();
    for candidate in candidates {
        match ask(&resolver, &candidate).await {
            Ok(places) if !places.is_empty() => return Ok(places),
            Ok(_) => {}
            Err(error) => why = format!("{error} (asked {})", servers.join(", ")),
        }
    }
    Err(failed(why))
}

/// Something to order the places of one priority by, smaller ones first: drawn anew each time, so that one with twice the weight comes
/// first twice as often. Those without weight come last.
pub(crate) fn draw(weight: u16) -> u64 {
    let uniform = 1.0 - rand::random::<f64>();
    let exponential = (-uniform.ln()).max(f64::MIN_POSITIVE);
    // The bits of positive numbers are in the order of the numbers; what is divided by zero is infinite.
    (exponential / f64::from(weight)).to_bits()
}

fn configuration() -> Result<ResolvConf, String> {
    let mut conf = ResolvConf::new();
    match std::env::var(SERVER_VARIABLE) {
        Ok(server) if !server.is_empty() => {
            let address: SocketAddr =
                server.parse().map_err(|_| format!("{SERVER_VARIABLE}: expected IP:PORT, got {server:?}"))?;
            conf.servers.push(ServerConf::new(address, Transport::UdpTcp));
        }
        _ => read_system(&mut conf),
    }
    conf.finalize();
    Ok(conf)
}

/// Reads what can be understood of the system's configuration: a line that cannot is no reason to pass over the rest.
fn read_system(conf: &mut ResolvConf) {
    let text = std::fs::read_to_string(SYSTEM_CONFIGURATION).unwrap_or_default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let _ = conf.parse(&mut line.as_bytes());
    }
}

/// The names to ask for, all of them absolute: as it is, and with each suffix of the search list. A name with many dots is tried
/// as it is first, as Go does.
fn candidates(name: &str, options: &ResolvOptions) -> Vec<String> {
    let absolute = format!("{}.", name.trim_end_matches('.'));
    if name.ends_with('.') {
        return vec![absolute];
    }
    let suffixes = options.search.as_slice().iter().filter(|suffix| !suffix.is_root());
    let mut candidates: Vec<String> = suffixes.map(|suffix| format!("{absolute}{suffix}.")).collect();
    let has_many_dots = name.matches('.').count() >= options.ndots;
    candidates.insert(if has_many_dots { 0 } else { candidates.len() }, absolute);
    candidates
}

async fn ask(resolver: &StubResolver, name: &str) -> io::Result<Vec<Place>> {
    let name = Name::<Vec<u8>>::from_str(name).map_err(io::Error::other)?;
    let answer = resolver.query((name, Rtype::SRV)).await?;
    let message = answer.as_ref().for_slice();
    match message.header().rcode() {
        Rcode::NOERROR | Rcode::NXDOMAIN => {}
        refusal => return Err(io::Error::other(format!("the server answered {refusal}"))),
    }
    let mut places = read(message).map_err(io::Error::other)?;
    places.sort();
    Ok(places)
}

/// The places that an answer names. The root as a host means that there is decidedly no such service.
fn read(message: &Message<[u8]>) -> Result<Vec<Place>, domain::base::wire::ParseError> {
    let mut places = Vec::new();
    for record in message.answer()?.limit_to_in::<Srv<_>>() {
        let record = record?;
        let srv = record.data();
        let host = srv.target().to_string().trim_end_matches('.').to_owned();
        if !host.is_empty() {
            let (priority, weight, port) = (srv.priority(), srv.weight(), srv.port());
            places.push(Place { priority, host, port, weight });
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> ResolvOptions {
        let mut conf = ResolvConf::new();
        for line in text.lines() {
            let _ = conf.parse(&mut line.as_bytes());
        }
        conf.finalize();
        conf.options
    }

    #[test]
    fn names_are_tried_in_the_order_that_the_search_list_says() {
        let names = |name, conf| candidates(name, &options(conf));
        assert_eq!(names("_a._tcp.b", ""), ["_a._tcp.b."]);
        assert_eq!(
            names("_a._tcp.b", "search x.org y.org"),
            ["_a._tcp.b.", "_a._tcp.b.x.org.", "_a._tcp.b.y.org."]
        );
        assert_eq!(names("_a._tcp.b", "search x.org\noptions ndots:5"), ["_a._tcp.b.x.org.", "_a._tcp.b."]);
        assert_eq!(names("_a._tcp.b.", "search x.org"), ["_a._tcp.b."]);
    }

    #[test]
    fn weights_decide_how_often_a_place_comes_first() {
        let first = |left, right| (0..10_000).filter(|_| draw(left) < draw(right)).count();
        let thrice = first(30, 10);
        assert!((7_000..8_000).contains(&thrice), "{thrice} of 10000");
        assert_eq!(first(1, 0), 10_000, "one without weight comes last");
        assert_eq!(draw(0), draw(0), "those without weight keep their order");
    }
}
