//! The planner: a [`View`] in, a short list of [`Move`]s out, each with its reason and its expected effect.
//!
//! ```text
//!   surplus ──▶ lost ──▶ damaged ──▶ stranded ──▶ shortage ──▶ drain ──▶ zones ──▶ disks ──▶ balance
//!   └────────────────── what is broken, the most urgent first ────────────────────────┘   └ what could be better
//! ```
//! Each stage sees what the ones before it decided as if it were done, and so are moves in progress. There is one move at a time for a
//! group, and there are bounds for the pool and for each node, which the urgent stages use up first.
//!
//! # Invariants
//! * No two replicas of a group on a node. None joins another in its zone while a node of an empty zone may take it.
//! * A damaged replica goes only if a majority of those that are left is well.
//! * Nobody receives who is out of reach, to be emptied, without a vote in the root group, slow to fsync, or would be more than 85 % full.
//! * A move for the sake of load lowers the larger W of its two nodes. So the sorted list of all W only ever goes down, and plans that are
//!   carried out one after the other come to an end.
//! * The same view and policy give the same plan.

mod balance;
mod board;
mod mend;
mod place;
mod places;
mod waiting;

pub(crate) use board::Board;
pub use place::{Wanted, place, release};
pub use waiting::{Hindrance, waiting};

use crate::moves::Move;
use crate::policy::Policy;
use crate::view::View;

/// What is to be done now, the most urgent first. At most one move for a group, none for groups that have one
/// that can come to its end.
pub fn plan(view: &View, policy: &Policy) -> Vec<Move> {
    let mut board = Board::new(view, policy);
    mend::surplus(&mut board);
    mend::lost(&mut board);
    mend::damaged(&mut board);
    mend::stranded(&mut board);
    mend::shortage(&mut board);
    mend::drain(&mut board);
    mend::zones(&mut board);
    mend::disks(&mut board);
    if policy.balance {
        balance::overload(&mut board);
        balance::underuse(&mut board);
    }
    board.into_moves()
}
