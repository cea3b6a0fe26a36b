//! Tells whoever started the process that it is ready: systemd's protocol, one datagram to the socket that
//! `NOTIFY_SOCKET` names. Nobody who started it otherwise sees anything of it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;

use tracing::{info, warn};

/// Says that clients are served.
pub(crate) fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    info!("notifying init daemon");
    match send(&socket, b"READY=1") {
        Ok(()) => info!("successfully notified init daemon"),
        // The node serves all the same; whoever waits for the word will give it up, and says so.
        Err(error) => warn!(%error, "failed to notify systemd for readiness"),
    }
}

fn send(socket: &OsStr, state: &[u8]) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    // A full queue must not hold the node up.
    sender.set_nonblocking(true)?;
    let sent = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => send_abstract(&sender, name, state)?,
        None => sender.send_to(state, socket)?,
    };
    if sent == state.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Linux has names that are no files.
#[cfg(target_os = "linux")]
fn send_abstract(sender: &UnixDatagram, name: &[u8], state: &[u8]) -> io::Result<usize> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    sender.send_to_addr(state, &SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn send_abstract(_: &UnixDatagram, _: &[u8], _: &[u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_word_arrives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), b"READY=1").unwrap();
        let mut word = [0; 32];
        let length = receiver.recv(&mut word).unwrap();
        assert_eq!(&word[..length], b"READY=1");
        assert!(send(directory.path().join("nobody").as_os_str(), b"READY=1").is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_is_no_file_is_understood() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::SocketAddr;

        let name = format!("hadron-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), b"READY=1").unwrap();
        assert_eq!(receiver.recv(&mut [0; 32]).unwrap(), 7);
    }
}
