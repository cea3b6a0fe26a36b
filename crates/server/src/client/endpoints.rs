//! The endpoints of a client, and which of them is asked first.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Endpoints that are asked in turn. Clones share whose turn it is: who failed one of them is asked last by all.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    all: Vec<String>,
    /// Position of the one that is asked first.
    turn: Arc<AtomicUsize>,
}

impl From<Vec<String>> for Endpoints {
    fn from(all: Vec<String>) -> Endpoints {
        Endpoints { all, turn: Arc::default() }
    }
}

impl Deref for Endpoints {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.all
    }
}

impl Endpoints {
    /// The positions of all, from the one that is asked first.
    pub(super) fn turns(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = (self.turn.load(Ordering::Relaxed), self.all.len());
        (0..count).map(move |number| (first + number) % count)
    }

    /// Has the next one asked first, if it was this one's turn: two that leave the same one do not leave another.
    pub(super) fn leave(&self, position: usize) {
        let next = (position + 1) % self.all.len();
        // Otherwise it was left already.
        let _ = self.turn.compare_exchange(position, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_left_is_asked_last_and_nobody_is_left_for_another() {
        let endpoints = Endpoints::from(["a", "b", "c"].map(str::to_owned).to_vec());
        let clone = endpoints.clone();
        endpoints.leave(0);
        clone.leave(0);
        assert_eq!(clone.turns().collect::<Vec<_>>(), [1, 2, 0]);
        clone.leave(1);
        clone.leave(2);
        assert_eq!(endpoints.turns().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
