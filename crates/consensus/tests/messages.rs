//! The byte encoding of messages: what is written is read back, and nothing else is believed.

#![allow(clippy::unwrap_used)]

use bytes::{BufMut, Bytes, BytesMut};
use hadron_consensus::{DecodeError, Entry, Index, LogPosition, Message, ReplicaId, Term};
use proptest::collection::vec;
use proptest::prelude::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..300u64, any::<u64>(), Just(u64::MAX)]
}

/// An append whose entries have the indexes that follow from its previous position.
fn append() -> impl Strategy<Value = Message> {
    let previous = (number(), 0..u64::MAX - 10, number());
    let entries = vec((number(), number(), vec(any::<u8>(), 0..300)), 0..5);
    (number(), previous, number(), number(), any::<bool>(), entries).prop_map(
        |(term, (previous_term, index, checksum), commit, round, answer, entries)| {
            let numbered = entries.into_iter().zip(index + 1..);
            let entries = numbered.map(|((term, checksum, data), index)| Entry {
                term: Term(term),
                index: Index(index),
                checksum,
                data: Bytes::from(data),
            });
            let previous = LogPosition { term: Term(previous_term), index: Index(index), checksum };
            let (term, commit) = (Term(term), Index(commit));
            let sleep = round % 2 == 1;
            Message::Append { term, previous, commit, round, answer, sleep, entries: entries.collect() }
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let numbers = (number(), number(), number(), number(), number());
    let others = (0..11, numbers, any::<bool>(), any::<bool>()).prop_map(|(kind, (a, b, c, d, e), x, y)| {
        let term = Term(a);
        match kind {
            0 => Message::VoteRequest { term, pre: x, transfer: y, last_term: Term(b), last_index: Index(c) },
            1 => {
                let voted_for = (c % 2 == 0).then_some(ReplicaId(d));
                Message::VoteAnswer { term, election: Term(b), pre: x, granted: y, voted_for }
            }
            2 => Message::AppendAck { term, round: b, matched: Index(c), full: a % 2 == 1, asleep: x },
            3 => Message::AppendReject {
                term,
                round: b,
                rejected: Index(c),
                hint_index: Index(d),
                hint_term: Term(e),
            },
            4 => Message::Diverged { term, index: Index(b), expected: c, found: d, broken: x },
            5 => Message::Stale { term },
            6 => Message::ReadRequest { term, batch: b },
            7 => Message::ReadAnswer { term, batch: b, index: Index(c) },
            8 => Message::TimeoutNow { term },
            9 => Message::Abdicate { term },
            _ => Message::Wake { term },
        }
    });
    prop_oneof![others, append()]
}

fn encoded(message: &Message) -> Bytes {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    bytes.freeze()
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(message in message()) {
        prop_assert_eq!(Message::decode(encoded(&message)), Ok(message));
    }

    #[test]
    fn a_message_cut_short_is_an_error(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&message);
        let cut = cut.index(bytes.len());
        prop_assert!(Message::decode(bytes.slice(..cut)).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(Bytes::from(bytes));
    }

    #[test]
    fn arbitrary_bytes_after_a_good_start_never_panic(kind in 0..14u8, bytes in vec(any::<u8>(), 0..200)) {
        let mut message = BytesMut::new();
        message.put_slice(&[1, kind]);
        message.put_slice(&bytes);
        let _ = Message::decode(message.freeze());
    }

    #[test]
    fn a_flipped_bit_never_panics(message in message(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = encoded(&message).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = Message::decode(Bytes::from(bytes));
    }
}

#[test]
fn entry_data_is_not_copied() {
    let data = Bytes::from(vec![7; 1000]);
    let entry = Entry { term: Term(1), index: Index(1), checksum: 0, data };
    let (term, commit, previous) = (Term(1), Index(0), LogPosition::default());
    let bytes = encoded(&Message::Append {
        term,
        previous,
        commit,
        round: 0,
        answer: true,
        sleep: false,
        entries: vec![entry],
    });
    let range = bytes.as_ptr_range();
    let Message::Append { entries, .. } = Message::decode(bytes.clone()).unwrap() else {
        panic!("not an append")
    };
    assert!(range.contains(&entries[0].data.as_ptr()));
}

/// A count that the bytes at hand cannot hold must not become an allocation.
#[test]
fn a_huge_count_is_refused_before_anything_is_allocated() {
    let (term, commit, previous) = (Term(1), Index(0), LogPosition::default());
    let append =
        Message::Append { term, previous, commit, round: 0, answer: true, sleep: false, entries: Vec::new() };
    let mut bytes = encoded(&append).to_vec();
    assert_eq!(bytes.pop(), Some(0), "the count of entries is last");
    bytes.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    assert_eq!(Message::decode(Bytes::from(bytes)), Err(DecodeError::Truncated));
}

#[test]
fn errors_name_what_is_wrong() {
    let bytes = |bytes: &'static [u8]| Message::decode(Bytes::from_static(bytes));
    assert_eq!(bytes(&[]), Err(DecodeError::Truncated));
    assert_eq!(bytes(&[2, 1]), Err(DecodeError::Version(2)));
    assert_eq!(bytes(&[1, 99]), Err(DecodeError::Kind(99)));
    assert_eq!(bytes(&[1, 7, 5, 0]), Err(DecodeError::Trailing(1)));
    assert_eq!(bytes(&[1, 1, 0xf0, 1, 1, 1]), Err(DecodeError::Range), "unknown flags");
    let eleven = [1, 7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
    assert_eq!(Message::decode(Bytes::from(eleven.to_vec())), Err(DecodeError::Range), "more than 64 bits");
}

/// The bytes that `docs/formats/messages.md` shows.
#[test]
fn the_documented_example() {
    let entry = Entry {
        term: Term(3),
        index: Index(8),
        checksum: 0x0807_0605_0403_0201,
        data: Bytes::from_static(b"hi"),
    };
    let previous = LogPosition { term: Term(2), index: Index(7), checksum: 0x1817_1615_1413_1211 };
    let (term, commit) = (Term(3), Index(300));
    let append = Message::Append {
        term,
        previous,
        commit,
        round: 5,
        answer: true,
        sleep: false,
        entries: vec![entry],
    };
    let expected = [
        0x01, 0x03, 0x01, 0x03, 0x02, 0x07, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0xac, 0x02, 0x05,
        0x01, 0x03, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x02, 0x68, 0x69,
    ];
    assert_eq!(encoded(&append).as_ref(), expected);
}
