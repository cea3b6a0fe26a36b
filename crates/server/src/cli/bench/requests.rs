//! The requests that a benchmark sends: keys, values and their encoding.

use bytes::{BufMut as _, Bytes, BytesMut};
use hadron_proto::etcdserverpb::request_op::Request;
use hadron_proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A put for each request.
    Put,
    /// A range over a single key for each request.
    Range {
        /// Without a quorum.
        serializable: bool,
    },
    /// A transaction for each request.
    Txn {
        /// Puts in it.
        operations: u32,
    },
}

impl Operation {
    /// For people and scripts.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Range { serializable: false } => "range linearizable",
            Operation::Range { serializable: true } => "range serializable",
            Operation::Txn { .. } => "txn",
        }
    }

    /// Path of its gRPC method.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Operation::Put => "/etcdserverpb.KV/Put",
            Operation::Range { .. } => "/etcdserverpb.KV/Range",
            Operation::Txn { .. } => "/etcdserverpb.KV/Txn",
        }
    }
}

/// Makes requests, one after the other, into one reused buffer.
#[derive(Debug)]
pub(crate) struct Requests {
    operation: Operation,
    key_size: usize,
    key_space: u64,
    sequential: bool,
    next_key: u64,
    value: Bytes,
    random: SmallRng,
    keys: BytesMut,
    encoded: BytesMut,
}

impl Requests {
    /// # Errors
    /// When keys of this size cannot tell all keys of the space apart.
    pub(crate) fn new(
        operation: Operation,
        key_size: usize,
        value_size: usize,
        key_space: u64,
        sequential: bool,
        seed: u64,
    ) -> Result<Requests, String> {
        let digits = key_space.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize + 1;
        if key_size < digits {
            return Err(format!(
                "--key-size {key_size} is too small for {key_space} different keys: use {digits}"
            ));
        }
        let mut random = SmallRng::seed_from_u64(seed);
        let mut value = vec![0; value_size];
        random.fill_bytes(&mut value);
        Ok(Requests {
            operation,
            key_size,
            key_space,
            sequential,
            next_key: 0,
            value: value.into(),
            random,
            keys: BytesMut::new(),
            encoded: BytesMut::new(),
        })
    }

    /// The next request behind its gRPC prefix: one byte for "not compressed", four for its length.
    pub(crate) fn next(&mut self) -> Bytes {
        match self.operation {
            Operation::Put => {
                let put = self.put();
                self.frame(&put)
            }
            Operation::Range { serializable } => {
                let range = RangeRequest { key: self.key(), serializable, ..Default::default() };
                self.frame(&range)
            }
            Operation::Txn { operations } => {
                // Distinct keys, since a transaction may not put one twice.
                let first = self.key_number();
                let success = (0..u64::from(operations)).map(|offset| {
                    let key = self.key_of((first + offset) % self.key_space.max(u64::from(operations)));
                    let put = PutRequest { key, value: self.value.clone(), ..Default::default() };
                    RequestOp { request: Some(Request::RequestPut(put)) }
                });
                let txn = TxnRequest { success: success.collect(), ..Default::default() };
                self.frame(&txn)
            }
        }
    }

    fn put(&mut self) -> PutRequest {
        PutRequest { key: self.key(), value: self.value.clone(), ..Default::default() }
    }

    fn key(&mut self) -> Bytes {
        let number = self.key_number();
        self.key_of(number)
    }

    fn key_number(&mut self) -> u64 {
        if !self.sequential {
            return self.random.random_range(0..self.key_space);
        }
        let number = self.next_key;
        self.next_key = (number + 1) % self.key_space;
        number
    }

    /// The number in decimal, with zeroes in front.
    fn key_of(&mut self, number: u64) -> Bytes {
        let start = self.keys.len();
        self.keys.put_bytes(b'0', self.key_size);
        let mut rest = number;
        for digit in self.keys[start..].iter_mut().rev() {
            if rest == 0 {
                break;
            }
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.keys.split().freeze()
    }

    fn frame(&mut self, message: &impl Message) -> Bytes {
        let length = message.encoded_len();
        self.encoded.reserve(length + 5);
        self.encoded.put_u8(0);
        self.encoded.put_u32(length as u32);
        message.encode_raw(&mut self.encoded);
        self.encoded.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn requests(operation: Operation, key_space: u64, sequential: bool) -> Requests {
        Requests::new(operation, 4, 3, key_space, sequential, 1).unwrap()
    }

    #[test]
    fn a_put_is_framed_for_grpc() {
        let mut requests = requests(Operation::Put, 100, true);
        requests.next();
        let frame = requests.next();
        assert_eq!(frame[..5], [0, 0, 0, 0, frame.len() as u8 - 5]);
        let put = PutRequest::decode(&frame[5..]).unwrap();
        assert_eq!((&put.key[..], put.value.len()), (&b"0001"[..], 3));
    }

    #[test]
    fn sequential_keys_wrap_around_and_random_ones_stay_within() {
        let key = |frame: Bytes| RangeRequest::decode(&frame[5..]).unwrap().key;
        let mut turn = requests(Operation::Range { serializable: true }, 2, true);
        let keys: Vec<Bytes> = (0..3).map(|_| key(turn.next())).collect();
        assert_eq!(keys, ["0000", "0001", "0000"]);
        let mut random = requests(Operation::Range { serializable: false }, 10, false);
        assert!((0..100).all(|_| key(random.next()) < "0010"));
    }

    #[test]
    fn a_txn_puts_each_key_once() {
        let mut requests = requests(Operation::Txn { operations: 3 }, 1, false);
        let txn = TxnRequest::decode(&requests.next()[5..]).unwrap();
        let keys = txn.success.iter().map(|op| match &op.request {
            Some(Request::RequestPut(put)) => put.key.clone(),
            other => panic!("{other:?}"),
        });
        assert_eq!(keys.collect::<Vec<_>>(), ["0000", "0001", "0002"]);
    }

    #[test]
    fn keys_must_fit_their_space() {
        let error = Requests::new(Operation::Put, 2, 0, 1000, false, 1).unwrap_err();
        assert_eq!(error, "--key-size 2 is too small for 1000 different keys: use 3");
        assert!(Requests::new(Operation::Put, 3, 0, 1000, false, 1).is_ok());
    }
}
