//! Deletions of many keys: piece by piece, at one revision.
//!
//! What one command deletes has no bound. The revision is hidden until it is whole, so readers see all of it or nothing, and they and everything
//! else that goes on in the shard get their turn between two pieces.

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;

use crate::apply::Applier;
use crate::command::Response;
use crate::error::Error;
use crate::lease::Lease;
use crate::mvcc::KeyRange;
use crate::range::{self, Row, Rows, Source, header};
use crate::read::Locked;
use crate::state::Write;

/// The deletion of a range that is under way.
#[derive(Debug)]
pub(crate) struct Deletion {
    range: KeyRange,
    /// The last key that was looked at.
    after: Option<Bytes>,
    deleted: i64,
    prev_kv: bool,
    prev_kvs: Vec<KeyValue>,
}

impl Deletion {
    /// Of nothing yet.
    pub(crate) fn new(request: &pb::DeleteRangeRequest) -> Deletion {
        let range = KeyRange::new(&request.key, &request.range_end);
        Deletion { range, after: None, deleted: 0, prev_kv: request.prev_kv, prev_kvs: Vec::new() }
    }

    /// Deletes some of the living keys; `None` if there may be more.
    pub(crate) fn go_on(
        &mut self,
        applier: &mut Applier<'_>,
        write: &mut Write,
    ) -> Result<Option<pb::DeleteRangeResponse>, Error> {
        loop {
            let mut rows = self.next_rows(&applier.source(Some(write)), applier.is_asked())?;
            if self.prev_kv {
                applier.read_for_answer(|this| this.source(Some(write)).fetch(&mut rows));
            }
            rows.iter().for_each(|row| applier.state.delete(write, &row.key));
            applier.effort.add(rows.len());
            self.deleted += rows.len() as i64;
            if self.prev_kv && applier.is_asked() {
                self.prev_kvs.extend(rows.into_iter().map(|row| range::key_value(row, false)));
            }
            if self.after.is_none() {
                let revision = if write.changes > 0 { write.revision } else { applier.state.revision };
                let prev_kvs = std::mem::take(&mut self.prev_kvs);
                let (header, deleted) = (header(revision), self.deleted);
                return Ok(Some(pb::DeleteRangeResponse { header, deleted, prev_kvs }));
            }
            if applier.effort.left() == 0 {
                return Ok(None);
            }
        }
    }

    /// The rows that are deleted next: if their values are to be told, no more than can be read now.
    fn next_rows(&mut self, source: &Locked<'_>, is_asked: bool) -> Result<Vec<Row>, Error> {
        let (mut found, after) = (Rows::default(), self.after.take());
        self.after = match self.prev_kv && is_asked {
            true => source.next_rows_to_read(&self.range, after.as_ref(), &mut found),
            false => source.next_rows(&self.range, after.as_ref(), &mut found)?,
        };
        Ok(found.rows)
    }
}

/// The ends of leases that are under way, one after the other.
#[derive(Debug)]
pub(crate) struct LeaseEnds {
    ending: Option<LeaseEnd>,
    /// Those that are to follow.
    others: std::vec::IntoIter<i64>,
    /// Those that ended, or have begun to.
    ended: Vec<i64>,
    /// A client ends it, whether its time is over or not.
    is_revoked: bool,
}

impl LeaseEnds {
    /// Of those of these whose time is over.
    pub(crate) fn expired(ids: Vec<i64>) -> LeaseEnds {
        LeaseEnds { ending: None, others: ids.into_iter(), ended: Vec::new(), is_revoked: false }
    }

    /// Of one that exists.
    pub(crate) fn revoked(id: i64) -> LeaseEnds {
        LeaseEnds { is_revoked: true, ..LeaseEnds::expired(vec![id]) }
    }

    /// Ends some of them; `None` if there may be more.
    pub(crate) fn go_on(&mut self, applier: &mut Applier<'_>) -> Option<Response> {
        loop {
            if let Some(lease) = self.ending.take() {
                self.ending = lease.go_on(applier);
            } else if let Some(id) = self.others.next() {
                let stamp_ms = applier.state.applied.stamp_ms;
                let is_over = |lease: &Lease| self.is_revoked || lease.expiry_ms <= stamp_ms;
                if applier.state.leases.get(id).is_some_and(is_over) {
                    self.ending = Some(LeaseEnd { id, write: applier.state.begin_write() });
                    self.ended.push(id);
                }
                applier.effort.add(1);
            } else if self.is_revoked {
                let header = header(applier.state.revision);
                return Some(Response::LeaseRevoke(pb::LeaseRevokeResponse { header }));
            } else {
                return Some(Response::LeaseExpire(std::mem::take(&mut self.ended)));
            }
            if applier.effort.left() == 0 {
                return None;
            }
        }
    }
}

/// The end of a lease that is under way: its keys are deleted in order, at one revision, and then it is gone.
#[derive(Debug)]
struct LeaseEnd {
    id: i64,
    write: Write,
}

impl LeaseEnd {
    /// Deletes some of its keys; gives itself back if there may be more.
    fn go_on(mut self, applier: &mut Applier<'_>) -> Option<LeaseEnd> {
        while let Some(key) = applier.state.leases.pop_key(self.id) {
            applier.state.delete(&mut self.write, &key);
            applier.effort.add(2);
            if applier.effort.left() == 0 {
                return Some(self);
            }
        }
        applier.state.remove_lease(self.id);
        applier.state.end_write(self.write);
        None
    }
}
