//! The network between the nodes of a cluster: a TCP proxy in front of each node's peer port, which delays, throttles,
//! holds back and breaks what passes through it.
//!
//! Every node is told the proxies' addresses, so all that nodes say to each other comes through here. Who dials is read
//! from the first frame of a connection, a hello or an inquiry (`docs/formats/peer.md`), so each direction between each two
//! nodes is a link with faults of its own. A link that is blocked keeps what it gets and delivers it, late, when it is opened, as
//! a kernel that retransmits does; and it does not even pass on that a connection was closed.
//!
//! Everything runs in tasks that end when the [`Network`] is dropped.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// Bytes of a frame before its body; the last of them is its kind.
const FRAME_HEAD: usize = 9;
const HELLO: u8 = 1;
const INQUIRY: u8 = 11;
const MEMBERS_INQUIRY: u8 = 13;
/// Where the id of the node that dials begins in a hello, and in an inquiry, which asks about the asker.
const HELLO_FROM: usize = 38;
const INQUIRY_FROM: usize = 17;
/// A connection must say hello in this time, and the node behind a proxy take the connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes taken from a connection at once, and how many such pieces may be on their way in each direction.
const CHUNK_BYTES: usize = 32 << 10;
const CHUNKS_MAX: usize = 64;

/// What happens to bytes on their way from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    /// Nothing arrives.
    pub blocked: bool,
    /// Each piece takes this long, and a random part of `jitter` more.
    pub delay: Duration,
    pub jitter: Duration,
    /// The share of pieces that get lost and have to be sent again, which holds up those behind them.
    pub loss: f64,
    /// What fits through in a second; 0 for no limit.
    pub bytes_per_second: u64,
    /// Connections that were made while this was less are broken.
    pub breaks: u64,
}

/// How long a lost piece takes to be sent again.
const RETRANSMISSION: Duration = Duration::from_millis(200);

impl Link {
    /// How long a piece is on its way.
    fn travel(&self, rng: &mut SmallRng) -> Duration {
        let lost = if rng.random_bool(self.loss) { RETRANSMISSION } else { Duration::ZERO };
        self.delay + self.jitter.mul_f64(rng.random_range(0.0..=1.0)) + lost
    }

    /// How long it takes to put `length` bytes on their way.
    fn sending(&self, length: usize) -> Duration {
        match self.bytes_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(length as f64 / rate as f64),
        }
    }
}

/// All links, by the numbers of the two nodes.
type Links = Vec<Vec<Link>>;

/// The proxies of a cluster.
pub struct Network {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    accepting: Vec<JoinHandle<()>>,
}

struct Shared {
    links: watch::Sender<Links>,
    /// Where the nodes listen.
    targets: Mutex<Vec<SocketAddr>>,
    /// The nodes' numbers by the ids under which they say hello.
    numbers: Mutex<HashMap<u64, usize>>,
    /// Who asks for the members: a node that joins, which has no id yet.
    joining: Mutex<Option<usize>>,
    rng: Mutex<SmallRng>,
}

impl Network {
    /// Proxies for `count` nodes, which are to be told of with [`Network::connect`].
    pub async fn start(count: usize, rng: SmallRng) -> Network {
        let shared = Arc::new(Shared {
            links: watch::Sender::new(vec![vec![Link::default(); count]; count]),
            targets: Mutex::default(),
            numbers: Mutex::default(),
            joining: Mutex::default(),
            rng: Mutex::new(rng),
        });
        let (mut addresses, mut accepting) = (Vec::new(), Vec::new());
        for to in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            accepting.push(tokio::spawn(accept(shared.clone(), listener, to)));
        }
        Network { addresses, shared, accepting }
    }

    /// Where nodes reach each other.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Says where each node listens and under which id it speaks.
    pub fn connect(&self, nodes: impl IntoIterator<Item = (SocketAddr, u64)>) {
        let (targets, ids): (Vec<_>, Vec<_>) = nodes.into_iter().unzip();
        *self.shared.targets.lock().unwrap() = targets;
        *self.shared.numbers.lock().unwrap() = ids.into_iter().zip(0..).collect();
    }

    /// Says under which id a node speaks that joins now.
    pub fn join(&self, number: usize, id: u64) {
        self.shared.numbers.lock().unwrap().insert(id, number);
        *self.shared.joining.lock().unwrap() = Some(number);
    }

    /// Changes the link from one node to another.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        self.shared.links.send_modify(|links| change(&mut links[from][to]));
    }

    /// Changes every link between two different nodes that `choose` wants.
    pub fn change_all(&self, choose: impl Fn(usize, usize) -> bool, mut change: impl FnMut(&mut Link)) {
        self.shared.links.send_modify(|links| {
            for (from, row) in links.iter_mut().enumerate() {
                for (to, link) in row.iter_mut().enumerate() {
                    if from != to && choose(from, to) {
                        change(link);
                    }
                }
            }
        });
    }

    /// Opens every link and takes away all delays. Connections stay.
    pub fn heal(&self) {
        self.change_all(|_, _| true, |link| *link = Link { breaks: link.breaks, ..Link::default() });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Connections end because they are broken, or with the runtime.
        self.accepting.iter().for_each(JoinHandle::abort);
        self.change_all(|_, _| true, |link| *link = Link { breaks: link.breaks + 1, ..Link::default() });
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, to: usize) {
    loop {
        // A failure means that there are no file descriptors left, and the next attempt says so again.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            // An error is a connection that broke, which both ends see.
            let _ = serve(&shared, stream, to).await;
        });
    }
}

async fn serve(shared: &Arc<Shared>, mut dialer: TcpStream, to: usize) -> io::Result<()> {
    dialer.set_nodelay(true)?;
    let (first, id) = timeout(PATIENCE, who_dials(&mut dialer)).await??;
    let from = match id {
        Some(id) => shared.numbers.lock().unwrap().get(&id).copied(),
        None => *shared.joining.lock().unwrap(),
    };
    let Some(from) = from else { return Err(io::Error::other(format!("unknown node {id:x?}"))) };
    let mut there = Way::new(shared, from, to);
    let back = Way::new(shared, to, from);
    if !there.opened().await {
        return Ok(());
    }
    let target = shared.targets.lock().unwrap()[to];
    let acceptor = timeout(PATIENCE, TcpStream::connect(target)).await??;
    acceptor.set_nodelay(true)?;
    let (dialer_reader, dialer_writer) = dialer.into_split();
    let (acceptor_reader, acceptor_writer) = acceptor.into_split();
    tokio::join!(
        there.carry(Some(first), dialer_reader, acceptor_writer),
        back.carry(None, acceptor_reader, dialer_writer),
    );
    Ok(())
}

/// The bytes of the first frame up to and including the id of the node that dials, and that id. One that joins has none.
async fn who_dials(dialer: &mut TcpStream) -> io::Result<(Bytes, Option<u64>)> {
    let mut first = vec![0; FRAME_HEAD];
    dialer.read_exact(&mut first).await?;
    let id_at = match first[FRAME_HEAD - 1] {
        HELLO => HELLO_FROM,
        INQUIRY => INQUIRY_FROM,
        MEMBERS_INQUIRY => return Ok((first.into(), None)),
        kind => return Err(io::Error::other(format!("a connection begins with a frame of kind {kind}"))),
    };
    first.resize(id_at + size_of::<u64>(), 0);
    dialer.read_exact(&mut first[FRAME_HEAD..]).await?;
    let id = u64::from_le_bytes(first[id_at..].try_into().unwrap());
    Ok((first.into(), Some(id)))
}

/// One direction of one connection.
struct Way {
    shared: Arc<Shared>,
    links: watch::Receiver<Links>,
    from: usize,
    to: usize,
    /// Of the link when the connection was made.
    breaks: u64,
}

impl Way {
    fn new(shared: &Arc<Shared>, from: usize, to: usize) -> Way {
        let links = shared.links.subscribe();
        let breaks = links.borrow()[from][to].breaks;
        Way { shared: shared.clone(), links, from, to, breaks }
    }

    /// Waits until the link is not blocked; false when the connection is broken instead.
    async fn opened(&mut self) -> bool {
        let (from, to, breaks) = (self.from, self.to, self.breaks);
        let passable = |links: &Links| !links[from][to].blocked || links[from][to].breaks != breaks;
        match self.links.wait_for(passable).await {
            Ok(links) => links[from][to].breaks == breaks,
            Err(_) => false,
        }
    }

    /// Returns when the connection has been broken.
    async fn broken(mut links: watch::Receiver<Links>, from: usize, to: usize, breaks: u64) {
        // An error says that the network is gone.
        let _ = links.wait_for(|links| links[from][to].breaks != breaks).await;
    }

    /// Carries bytes until either end closes or the connection is broken.
    async fn carry(mut self, first: Option<Bytes>, reader: OwnedReadHalf, mut writer: OwnedWriteHalf) {
        let (sender, mut pieces) = mpsc::channel(CHUNKS_MAX);
        let taking = take(self.shared.clone(), (self.from, self.to), first, reader, sender);
        let broken = Way::broken(self.links.clone(), self.from, self.to, self.breaks);
        let delivering = async {
            while let Some((arrival, piece)) = pieces.recv().await {
                sleep_until(arrival).await;
                if !self.opened().await || writer.write_all(&piece).await.is_err() {
                    return;
                }
            }
            // That the connection was closed travels like everything else.
            if self.opened().await {
                let _ = writer.shutdown().await;
            }
        };
        tokio::select! {
            () = async { tokio::join!(taking, delivering); } => {}
            () = broken => {}
        }
    }
}

/// Takes pieces from a connection and says when each is to arrive.
async fn take(
    shared: Arc<Shared>,
    (from, to): (usize, usize),
    first: Option<Bytes>,
    mut reader: OwnedReadHalf,
    pieces: mpsc::Sender<(Instant, Bytes)>,
) {
    let mut newest = Instant::now();
    let mut next = first;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let piece = match next.take() {
            Some(piece) => piece,
            None => match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => Bytes::copy_from_slice(&buffer[..length]),
            },
        };
        let link = shared.links.borrow()[from][to];
        let travel = link.travel(&mut shared.rng.lock().unwrap());
        // In order, as TCP has it.
        newest = newest.max(Instant::now() + travel) + link.sending(piece.len());
        if pieces.send((newest, piece)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const QUIET: Duration = Duration::from_millis(300);

    /// A hello of node `id`, as far as the proxy reads it.
    fn hello(id: u64) -> Vec<u8> {
        let mut bytes = vec![0; HELLO_FROM];
        bytes[FRAME_HEAD - 1] = HELLO;
        bytes.extend(id.to_le_bytes());
        bytes
    }

    /// Two nodes with the ids 100 and 101, and a connection from the first to the second: both its ends.
    async fn connected() -> (Network, TcpStream, TcpStream) {
        let network = Network::start(2, SmallRng::seed_from_u64(1)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        network.connect([(address, 100), (address, 101)]);
        let mut dialer = TcpStream::connect(network.addresses()[1]).await.unwrap();
        dialer.write_all(&hello(100)).await.unwrap();
        let (mut acceptor, _) = listener.accept().await.unwrap();
        let mut said = vec![0; hello(100).len()];
        acceptor.read_exact(&mut said).await.unwrap();
        assert_eq!(said, hello(100));
        (network, dialer, acceptor)
    }

    async fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").await.unwrap();
        timeout(QUIET, to.read_u8()).await.is_ok_and(|read| read.unwrap() == b'x')
    }

    #[tokio::test]
    async fn a_blocked_direction_delivers_late_and_the_other_at_once() {
        let (network, mut dialer, mut acceptor) = connected().await;
        network.change(0, 1, |link| link.blocked = true);
        assert!(!arrives(&mut dialer, &mut acceptor).await);
        assert!(arrives(&mut acceptor, &mut dialer).await);
        network.heal();
        assert_eq!(acceptor.read_u8().await.unwrap(), b'x');
        assert!(arrives(&mut dialer, &mut acceptor).await);
    }

    #[tokio::test]
    async fn an_end_is_not_seen_through_a_blocked_link() {
        let (network, dialer, mut acceptor) = connected().await;
        network.change(0, 1, |link| link.blocked = true);
        drop(dialer);
        assert!(timeout(QUIET, acceptor.read_u8()).await.is_err());
        network.heal();
        assert!(acceptor.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn a_break_ends_both_sides() {
        let (network, mut dialer, mut acceptor) = connected().await;
        network.change(0, 1, |link| link.breaks += 1);
        network.change(1, 0, |link| link.breaks += 1);
        assert!(acceptor.read_u8().await.is_err());
        assert!(dialer.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn delays_and_rates_hold_up_and_keep_the_order() {
        let (network, mut dialer, mut acceptor) = connected().await;
        network.change(0, 1, |link| {
            *link = Link { delay: QUIET, jitter: QUIET, bytes_per_second: 1 << 20, ..Link::default() };
        });
        let began = Instant::now();
        let bytes: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
        dialer.write_all(&bytes).await.unwrap();
        let mut arrived = vec![0; bytes.len()];
        acceptor.read_exact(&mut arrived).await.unwrap();
        assert_eq!(arrived, bytes);
        assert!(began.elapsed() > QUIET);
    }
}
