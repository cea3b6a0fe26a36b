//! A DNS server for tests: it knows SRV records, and nothing else.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// Priority, weight, port and host.
pub type Record = (u16, u16, u16, &'static str);

const SRV: [u8; 2] = [0, 33];
const IN: [u8; 2] = [0, 1];
const NXDOMAIN: u8 = 3;
const HEADER_BYTES: usize = 12;

/// A server that answers as long as the test runs.
pub struct Dns {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, Vec<Record>>,
    is_silent: bool,
}

impl Dns {
    /// One that knows of no name.
    pub fn start() -> Dns {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (address, state) = (socket.local_addr().unwrap(), Arc::<Mutex<State>>::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            let mut question = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                if let Some(answer) = shared.lock().unwrap().answer(&question[..length]) {
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        Dns { address, state }
    }

    /// From now on the name has these records, and no others.
    pub fn set(&self, name: &str, records: &[Record]) {
        self.state.lock().unwrap().records.insert(name.to_owned(), records.to_vec());
    }

    /// From now on it says nothing any more.
    pub fn fall_silent(&self) {
        self.state.lock().unwrap().is_silent = true;
    }
}

impl State {
    /// The header of the question with other counts, the question, and the records, each under the name that stands in the question.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        if self.is_silent {
            return None;
        }
        let (name, end) = read_name(question);
        let records = self.records.get(&name).filter(|_| question[end..end + 4] == [SRV, IN].concat());
        let rcode = if records.is_some() { 0 } else { NXDOMAIN };
        let records = records.map(Vec::as_slice).unwrap_or_default();
        let mut answer = vec![question[0], question[1], 0x81, 0x80 | rcode, 0, 1];
        answer.extend((records.len() as u16).to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(&question[HEADER_BYTES..end + 4]);
        for (priority, weight, port, host) in records {
            let host = write_name(host);
            answer.extend([&[0xc0, HEADER_BYTES as u8][..], &SRV, &IN, &60u32.to_be_bytes()].concat());
            answer.extend((6 + host.len() as u16).to_be_bytes());
            answer.extend([priority.to_be_bytes(), weight.to_be_bytes(), port.to_be_bytes()].concat());
            answer.extend(host);
        }
        Some(answer)
    }
}

/// The name in a question, without a dot at its end, and where it ends.
fn read_name(question: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), HEADER_BYTES);
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels.join("."), at + 1)
}

fn write_name(name: &str) -> Vec<u8> {
    let label = |label: &str| [&[label.len() as u8], label.as_bytes()].concat();
    name.split('.').flat_map(label).chain([0]).collect()
}
