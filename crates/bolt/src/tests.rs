//! What was written is read; what was damaged is noticed or means nothing, and never hurts.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use crate::{Damage, Reader, Writer};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn entries(count: usize) -> Pairs {
    let value =
        |number: usize| vec![number as u8; if number.is_multiple_of(97) { 9_000 } else { number % 300 }];
    (0..count).map(|number| (format!("{number:08}").into_bytes(), value(number))).collect()
}

fn file(count: usize) -> Vec<u8> {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    for name in ["key", "auth", "empty"] {
        let mut bucket = writer.bucket(name.as_bytes());
        for (key, value) in entries(if name == "empty" { 0 } else { count }) {
            bucket.put(&key, &value).unwrap();
        }
        bucket.finish().unwrap();
    }
    writer.finish().unwrap().0.into_inner()
}

fn read(file: &[u8]) -> Result<Vec<(Vec<u8>, Pairs)>, String> {
    let mut reader =
        Reader::new(Cursor::new(file), file.len() as u64).map_err(|damage| damage.to_string())?;
    let mut found = Vec::new();
    for name in reader.buckets().map_err(|damage| damage.to_string())? {
        let mut pairs = Vec::new();
        let visit = |key: &[u8], value: &[u8]| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok::<(), Damage>(())
        };
        assert!(reader.visit(&name, visit).map_err(|damage| damage.to_string())?);
        found.push((name, pairs));
    }
    Ok(found)
}

#[test]
fn what_was_written_is_read() {
    for count in [0, 1, 100, 20_000] {
        let found = read(&file(count)).unwrap();
        let expected = [(b"auth".to_vec(), count), (b"empty".to_vec(), 0), (b"key".to_vec(), count)];
        assert!(found == expected.map(|(name, count)| (name, entries(count))));
    }
}

#[test]
fn a_file_that_was_cut_or_is_none_is_refused() {
    let whole = file(1_000);
    for length in [0, 100, 4096, whole.len() / 2, whole.len() - 1] {
        assert!(read(&whole[..length]).is_err(), "{length}");
    }
    assert!(read(&vec![0; 100_000]).unwrap_err().contains("not a file of bbolt"));
    let behind = [whole, vec![7; 32]].concat();
    assert!(read(&behind).is_ok());
}

/// A simple generator, so that the crate needs no other.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn damage_is_an_error_or_another_content_and_never_a_panic() {
    let whole = file(300);
    let (mut state, mut refused) = (7, 0);
    for _ in 0..600 {
        let mut damaged = whole.clone();
        for _ in 0..1 + random(&mut state) % 4 {
            // Most of the damage where it hurts: headers and elements.
            let page = random(&mut state) % (damaged.len() / 4096);
            let within = random(&mut state) % if random(&mut state).is_multiple_of(4) { 4096 } else { 200 };
            damaged[page * 4096 + within] = random(&mut state) as u8;
        }
        refused += usize::from(read(&damaged).is_err());
    }
    assert!(refused > 100, "{refused}");
    for _ in 0..500 {
        let noise: Vec<u8> = (0..8192).map(|_| random(&mut state) as u8).collect();
        assert!(read(&noise).is_err());
    }
}
