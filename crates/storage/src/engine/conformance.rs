//! What every [`Engine`] must do, as one suite that is run against each of them.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Change, Engine, EngineError, KEY_BYTES_MAX, Read, Space};

/// Runs the whole suite; `open` gives a new, empty engine each time.
pub(crate) fn check(open: &mut dyn FnMut() -> Arc<dyn Engine>) {
    reads_what_was_written(&*open());
    spaces_are_apart(&*open());
    later_changes_of_a_batch_win(&*open());
    scans_in_order_within_bounds(&*open());
    a_scan_stops_when_told(&*open());
    a_visit_may_use_the_engine(&*open());
    snapshots_do_not_change(&*open());
    holds_large_and_empty_values(&*open());
    refuses_keys_that_are_empty_or_too_long(&*open());
    batches_are_atomic_for_readers(open());
}

fn put(space: Space, key: &[u8], value: &[u8]) -> Change {
    Change::Put(space, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

fn delete(space: Space, key: &[u8]) -> Change {
    Change::Delete(space, Bytes::copy_from_slice(key))
}

fn pairs(read: &dyn Read, space: Space, from: &[u8], to: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    read.scan(space, from, to, &mut |key, value| {
        pairs.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    pairs
}

fn reads_what_was_written(engine: &dyn Engine) {
    assert_eq!(engine.get(Space::State, b"a").unwrap(), None);
    engine.write(vec![put(Space::State, b"a", b"1"), put(Space::State, b"b", b"2")]).unwrap();
    engine.write(Batch::new()).unwrap();
    assert_eq!(engine.get(Space::State, b"a").unwrap().as_deref(), Some(&b"1"[..]));
    engine.write(vec![put(Space::State, b"a", b"3"), delete(Space::State, b"b")]).unwrap();
    engine.write(vec![delete(Space::State, b"never there")]).unwrap();
    engine.persist().unwrap();
    assert_eq!(engine.get(Space::State, b"a").unwrap().as_deref(), Some(&b"3"[..]));
    assert_eq!(engine.get(Space::State, b"b").unwrap(), None);
}

fn spaces_are_apart(engine: &dyn Engine) {
    for (number, space) in Space::ALL.into_iter().enumerate() {
        engine.write(vec![put(space, b"key", &[number as u8])]).unwrap();
    }
    for (number, space) in Space::ALL.into_iter().enumerate() {
        assert_eq!(engine.get(space, b"key").unwrap().as_deref(), Some(&[number as u8][..]));
        assert_eq!(pairs(engine, space, b"", b"z").len(), 1);
    }
}

fn later_changes_of_a_batch_win(engine: &dyn Engine) {
    let space = Space::Tables;
    engine
        .write(vec![
            put(space, b"a", b"1"),
            delete(space, b"a"),
            put(space, b"a", b"2"),
            put(space, b"b", b"1"),
            delete(space, b"b"),
        ])
        .unwrap();
    assert_eq!(engine.get(space, b"a").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(engine.get(space, b"b").unwrap(), None);
}

fn scans_in_order_within_bounds(engine: &dyn Engine) {
    let space = Space::Versions;
    let keys: [&[u8]; 5] = [b"c", b"a", b"\xff", b"b\x00", b"b"];
    for key in keys {
        engine.write(vec![put(space, key, key)]).unwrap();
    }
    let found = |from: &[u8], to: &[u8]| -> Vec<Vec<u8>> {
        pairs(engine, space, from, to).into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(found(b"", b"\xff"), [&b"a"[..], b"b", b"b\x00", b"c"]);
    assert_eq!(found(b"b", b"c"), [&b"b"[..], b"b\x00"]);
    assert_eq!(found(b"", b"\xff\xff").len(), 5);
    assert!(found(b"b", b"b").is_empty());
    assert!(found(b"c", b"a").is_empty());
}

fn a_scan_stops_when_told(engine: &dyn Engine) {
    let batch = (0..100u8).map(|number| put(Space::Values, &[number], &[number])).collect();
    engine.write(batch).unwrap();
    let mut seen = 0;
    engine
        .scan(Space::Values, &[10], &[200], &mut |_, _| {
            seen += 1;
            if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, 3);
}

fn a_visit_may_use_the_engine(engine: &dyn Engine) {
    engine.write(vec![put(Space::Values, b"a", b"1"), put(Space::Values, b"b", b"1")]).unwrap();
    let mut seen = 0;
    engine
        .scan(Space::Values, b"", b"z", &mut |key, _| {
            seen += 1;
            engine.write(vec![delete(Space::Values, key), put(Space::Values, b"c", b"1")]).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, 2, "a scan sees the engine as it was when the scan began");
    assert_eq!(pairs(engine, Space::Values, b"", b"z").len(), 1);
}

fn snapshots_do_not_change(engine: &dyn Engine) {
    let space = Space::Values;
    engine.write(vec![put(space, b"a", b"1"), put(space, b"b", b"1")]).unwrap();
    let before = engine.snapshot();
    engine.write(vec![put(space, b"a", b"2"), delete(space, b"b"), put(space, b"c", b"2")]).unwrap();
    engine.persist().unwrap();
    let after = engine.snapshot();
    assert_eq!(before.get(space, b"a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(before.get(space, b"c").unwrap(), None);
    assert_eq!(pairs(&*before, space, b"", b"z").len(), 2);
    assert_eq!(after.get(space, b"a").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(after.get(space, b"b").unwrap(), None);
    let copied = before.get(space, b"b").unwrap();
    drop(before);
    assert_eq!(copied.as_deref(), Some(&b"1"[..]), "values outlive the snapshot they were read from");
}

fn holds_large_and_empty_values(engine: &dyn Engine) {
    let large = vec![7; 2 << 20];
    engine.write(vec![put(Space::Values, b"large", &large), put(Space::Values, b"empty", b"")]).unwrap();
    assert_eq!(engine.get(Space::Values, b"large").unwrap().as_deref(), Some(&large[..]));
    assert_eq!(engine.get(Space::Values, b"empty").unwrap().as_deref(), Some(&b""[..]));
}

/// fjall panics at them, in the thread that flushes.
fn refuses_keys_that_are_empty_or_too_long(engine: &dyn Engine) {
    let (longest, too_long) = (vec![b'k'; KEY_BYTES_MAX], vec![b'k'; KEY_BYTES_MAX + 1]);
    for key in [&b""[..], &too_long] {
        for change in [put(Space::Tables, key, b"1"), delete(Space::Tables, key)] {
            let refused = engine.write(vec![put(Space::Tables, b"a", b"1"), change]);
            assert!(matches!(refused, Err(EngineError::Unfit(_))), "{} bytes: {refused:?}", key.len());
            assert_eq!(engine.get(Space::Tables, b"a").unwrap(), None, "all of the batch or nothing");
        }
    }
    engine.write(vec![put(Space::Tables, &longest, b"1")]).unwrap();
    assert_eq!(engine.get(Space::Tables, &longest).unwrap().as_deref(), Some(&b"1"[..]));
    engine.write(vec![delete(Space::Tables, &longest)]).unwrap();
    assert_eq!(engine.get(Space::Tables, &longest).unwrap(), None);
}

/// Two spaces are always written together with equal values; no snapshot may see one without the other.
fn batches_are_atomic_for_readers(engine: Arc<dyn Engine>) {
    let writer = {
        let engine = Arc::clone(&engine);
        std::thread::spawn(move || {
            for number in 0..500u32 {
                let value = number.to_be_bytes();
                engine
                    .write(vec![put(Space::State, b"k", &value), put(Space::Values, b"k", &value)])
                    .unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let view = engine.snapshot();
        let first = view.get(Space::State, b"k").unwrap();
        let second = view.get(Space::Values, b"k").unwrap();
        assert_eq!(first, second);
    }
    writer.join().unwrap();
}
