//! Ports that are given to processes before they run.
//!
//! A port that was only found free may be taken by anybody until its process binds it, and again while that process is
//! restarted: by a listener on port 0 or by the near end of a connection. So it is held: a bound socket that does not
//! listen, with `SO_REUSEADDR`, keeps the kernel from giving its port out, and lets whoever asks for just this port and
//! sets `SO_REUSEADDR` too (as servers do) listen on it.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port of this machine that nobody else is given. Connections to it are refused until somebody listens on it.
pub struct Port {
    address: SocketAddr,
    _held: Socket,
}

impl Port {
    /// One that is free.
    pub fn hold() -> Port {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Port { address, _held: socket }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As plain HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
