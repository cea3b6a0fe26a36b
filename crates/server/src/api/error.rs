//! etcd's errors: one table of codes and texts, and how everything that can go wrong here maps onto it.
//!
//! Codes and texts are part of the interface: clients compare them literally. The test holds a second copy, taken by
//! hand from etcd's published `rpctypes`, so that neither can change unnoticed.

use hadron_keyspace::Error as KeyspaceError;
use hadron_keyspace::auth::AuthError;
use tonic::{Code, Status};

use super::backend::Unavailable;
use super::passed_on;

/// Declares [`EtcdError`] with its code and text. Each text is preceded by `etcdserver: ` on the wire.
macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal;)*) => {
        /// An error that etcd's clients know by its code and text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the text of each is its documentation")]
        pub enum EtcdError { $($(#[$doc])* $name,)* }

        impl EtcdError {
            /// Every error, in the order of the table.
            pub const ALL: &[EtcdError] = &[$(EtcdError::$name,)*];

            /// The gRPC code.
            pub fn code(self) -> Code {
                match self { $(EtcdError::$name => Code::$code,)* }
            }

            /// The text, exactly as on the wire.
            pub fn text(self) -> &'static str {
                match self { $(EtcdError::$name => concat!("etcdserver: ", $text),)* }
            }
        }
    };
}

errors! {
    EmptyKey = InvalidArgument, "key is not provided";
    KeyNotFound = InvalidArgument, "key not found";
    ValueProvided = InvalidArgument, "value is provided";
    LeaseProvided = InvalidArgument, "lease is provided";
    TooManyOps = InvalidArgument, "too many operations in txn request";
    DuplicateKey = InvalidArgument, "duplicate key given in txn request";
    InvalidClientApiVersion = InvalidArgument, "invalid client api version";
    InvalidSortOption = InvalidArgument, "invalid sort option";
    Compacted = OutOfRange, "mvcc: required revision has been compacted";
    FutureRevision = OutOfRange, "mvcc: required revision is a future revision";
    NoSpace = ResourceExhausted, "mvcc: database space exceeded";

    LeaseNotFound = NotFound, "requested lease not found";
    LeaseExists = FailedPrecondition, "lease already exists";
    LeaseTtlTooLarge = OutOfRange, "too large lease TTL";

    WatchCanceled = Cancelled, "watch canceled";

    MemberExists = FailedPrecondition, "member ID already exist";
    PeerUrlExists = FailedPrecondition, "Peer URLs already exists";
    MemberNotEnoughStarted = FailedPrecondition, "re-configuration failed due to not enough started members";
    MemberBadUrls = InvalidArgument, "given member URLs are invalid";
    MemberNotFound = NotFound, "member not found";
    MemberNotLearner = FailedPrecondition, "can only promote a learner member";
    LearnerNotReady = FailedPrecondition, "can only promote a learner member which is in sync with leader";
    TooManyLearners = FailedPrecondition, "too many learner members in cluster";
    ClusterIdMismatch = FailedPrecondition, "cluster ID mismatch";

    RequestTooLarge = InvalidArgument, "request is too large";
    TooManyRequests = ResourceExhausted, "too many requests";

    RootUserNotExist = FailedPrecondition, "root user does not exist";
    RootRoleNotExist = FailedPrecondition, "root user does not have root role";
    UserAlreadyExists = FailedPrecondition, "user name already exists";
    UserEmpty = InvalidArgument, "user name is empty";
    UserNotFound = FailedPrecondition, "user name not found";
    RoleAlreadyExists = FailedPrecondition, "role name already exists";
    RoleNotFound = FailedPrecondition, "role name not found";
    RoleEmpty = InvalidArgument, "role name is empty";
    AuthFailed = InvalidArgument, "authentication failed, invalid user ID or password";
    PermissionNotGiven = InvalidArgument, "permission not given";
    PermissionDenied = PermissionDenied, "permission denied";
    RoleNotGranted = FailedPrecondition, "role is not granted to the user";
    PermissionNotGranted = FailedPrecondition, "permission is not granted to the role";
    AuthNotEnabled = FailedPrecondition, "authentication is not enabled";
    InvalidAuthToken = Unauthenticated, "invalid auth token";
    InvalidAuthManagement = InvalidArgument, "invalid auth management";
    AuthOldRevision = InvalidArgument, "revision of auth store is old";

    NoLeader = Unavailable, "no leader";
    NotLeader = FailedPrecondition, "not leader";
    LeaderChanged = Unavailable, "leader changed";
    NotCapable = FailedPrecondition, "not capable";
    Stopped = Unavailable, "server stopped";
    Timeout = Unavailable, "request timed out";
    TimeoutLeaderFailed = Unavailable, "request timed out, possibly due to previous leader failure";
    TimeoutConnectionLost = Unavailable, "request timed out, possibly due to connection lost";
    TimeoutWaitAppliedIndex = Unavailable, "request timed out, waiting for the applied index took too long";
    Unhealthy = Unavailable, "unhealthy cluster";
    Corrupt = DataLoss, "corrupt cluster";
    NotSupportedForLearner = FailedPrecondition, "rpc not supported for learner";
    BadLeaderTransferee = FailedPrecondition, "bad leader transferee";

    WrongDowngradeVersionFormat = InvalidArgument, "wrong downgrade target version format";
    InvalidDowngradeTargetVersion = InvalidArgument, "invalid downgrade target version";
    ClusterVersionUnavailable = FailedPrecondition, "cluster version not found during downgrade";
    DowngradeInProcess = FailedPrecondition, "cluster has a downgrade job in progress";
    NoInflightDowngrade = FailedPrecondition, "no inflight downgrade job";

    Canceled = Cancelled, "request canceled";
    DeadlineExceeded = DeadlineExceeded, "context deadline exceeded";
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Status {
        Status::new(error.code(), error.text())
    }
}

impl From<Unavailable> for EtcdError {
    fn from(error: Unavailable) -> EtcdError {
        match error {
            // A node without the group cannot name its leader: a client should try another endpoint.
            Unavailable::NoLeader | Unavailable::NoSuchGroup => EtcdError::NoLeader,
            Unavailable::LeaderChanged => EtcdError::LeaderChanged,
            Unavailable::Busy => EtcdError::TooManyRequests,
            Unavailable::TooLarge => EtcdError::RequestTooLarge,
            Unavailable::Stopped => EtcdError::Stopped,
            Unavailable::Quarantined => EtcdError::Unhealthy,
            Unavailable::NotLeader => EtcdError::NotLeader,
            Unavailable::LeaderTooOld => EtcdError::NotCapable,
            Unavailable::BadTransferTarget => EtcdError::BadLeaderTransferee,
            Unavailable::Timeout => EtcdError::Timeout,
            Unavailable::TimeoutLeaderFailed => EtcdError::TimeoutLeaderFailed,
            Unavailable::TimeoutConnectionLost => EtcdError::TimeoutConnectionLost,
        }
    }
}

impl From<AuthError> for EtcdError {
    fn from(error: AuthError) -> EtcdError {
        match error {
            AuthError::RootUserNotExist => EtcdError::RootUserNotExist,
            AuthError::RootRoleNotExist => EtcdError::RootRoleNotExist,
            AuthError::UserAlreadyExists => EtcdError::UserAlreadyExists,
            AuthError::UserEmpty => EtcdError::UserEmpty,
            AuthError::UserNotFound => EtcdError::UserNotFound,
            AuthError::RoleAlreadyExists => EtcdError::RoleAlreadyExists,
            AuthError::RoleNotFound => EtcdError::RoleNotFound,
            AuthError::RoleEmpty => EtcdError::RoleEmpty,
            AuthError::PermissionNotGiven => EtcdError::PermissionNotGiven,
            AuthError::PermissionDenied => EtcdError::PermissionDenied,
            AuthError::RoleNotGranted => EtcdError::RoleNotGranted,
            AuthError::PermissionNotGranted => EtcdError::PermissionNotGranted,
            AuthError::NameTooLong | AuthError::RecordTooLarge => EtcdError::RequestTooLarge,
            AuthError::InvalidAuthManagement => EtcdError::InvalidAuthManagement,
            AuthError::AuthOldRevision => EtcdError::AuthOldRevision,
        }
    }
}

impl From<Unavailable> for Status {
    fn from(error: Unavailable) -> Status {
        let known = EtcdError::from(error);
        match error {
            Unavailable::NoSuchGroup => passed_on::marked(known.into()),
            // etcd's words do not say what to do.
            Unavailable::LeaderTooOld => Status::new(known.code(), format!("hadron: {error}")),
            _ => known.into(),
        }
    }
}

impl EtcdError {
    /// The error that a client knows for a refusal of the state machine; `None` for a local fault and for too large a txn, which etcd has
    /// no words for.
    pub fn from_keyspace(error: &KeyspaceError) -> Option<EtcdError> {
        Some(match error {
            KeyspaceError::EmptyKey => EtcdError::EmptyKey,
            KeyspaceError::KeyNotFound => EtcdError::KeyNotFound,
            KeyspaceError::ValueProvided => EtcdError::ValueProvided,
            KeyspaceError::LeaseProvided => EtcdError::LeaseProvided,
            KeyspaceError::TooManyOps => EtcdError::TooManyOps,
            KeyspaceError::DuplicateKey => EtcdError::DuplicateKey,
            KeyspaceError::InvalidSort => EtcdError::InvalidSortOption,
            KeyspaceError::Compacted => EtcdError::Compacted,
            KeyspaceError::FutureRev => EtcdError::FutureRevision,
            KeyspaceError::LeaseNotFound => EtcdError::LeaseNotFound,
            KeyspaceError::LeaseExists => EtcdError::LeaseExists,
            KeyspaceError::LeaseTtlTooLarge => EtcdError::LeaseTtlTooLarge,
            KeyspaceError::NoSpace => EtcdError::NoSpace,
            KeyspaceError::Auth(error) => EtcdError::from(*error),
            KeyspaceError::TooManyKeys(_) | KeyspaceError::TooManyBytes(_) => return None,
            KeyspaceError::Storage(_) | KeyspaceError::Unreadable(_) => return None,
        })
    }
}

/// A refusal of the state machine as a client sees it.
pub(super) fn refusal(error: KeyspaceError) -> Status {
    if let Some(known) = EtcdError::from_keyspace(&error) {
        return known.into();
    }
    if let KeyspaceError::TooManyKeys(_) | KeyspaceError::TooManyBytes(_) = error {
        return Status::invalid_argument(format!("hadron: {error}"));
    }
    tracing::error!(%error, "cannot read the local state");
    let code = match error {
        // Whoever asks again would do it twice.
        KeyspaceError::Unreadable(_) => Code::DataLoss,
        // Another node may well be able to read, and this code makes clients ask one.
        _ => Code::Unavailable,
    };
    Status::new(code, format!("hadron: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// etcd's errors as their numeric code and text, taken from its `api/v3rpc/rpctypes/error.go`.
    const ETCD: &[(i32, &str)] = &[
        (3, "etcdserver: key is not provided"),
        (3, "etcdserver: key not found"),
        (3, "etcdserver: value is provided"),
        (3, "etcdserver: lease is provided"),
        (3, "etcdserver: too many operations in txn request"),
        (3, "etcdserver: duplicate key given in txn request"),
        (3, "etcdserver: invalid client api version"),
        (3, "etcdserver: invalid sort option"),
        (11, "etcdserver: mvcc: required revision has been compacted"),
        (11, "etcdserver: mvcc: required revision is a future revision"),
        (8, "etcdserver: mvcc: database space exceeded"),
        (5, "etcdserver: requested lease not found"),
        (9, "etcdserver: lease already exists"),
        (11, "etcdserver: too large lease TTL"),
        (1, "etcdserver: watch canceled"),
        (9, "etcdserver: member ID already exist"),
        (9, "etcdserver: Peer URLs already exists"),
        (9, "etcdserver: re-configuration failed due to not enough started members"),
        (3, "etcdserver: given member URLs are invalid"),
        (5, "etcdserver: member not found"),
        (9, "etcdserver: can only promote a learner member"),
        (9, "etcdserver: can only promote a learner member which is in sync with leader"),
        (9, "etcdserver: too many learner members in cluster"),
        (9, "etcdserver: cluster ID mismatch"),
        (3, "etcdserver: request is too large"),
        (8, "etcdserver: too many requests"),
        (9, "etcdserver: root user does not exist"),
        (9, "etcdserver: root user does not have root role"),
        (9, "etcdserver: user name already exists"),
        (3, "etcdserver: user name is empty"),
        (9, "etcdserver: user name not found"),
        (9, "etcdserver: role name already exists"),
        (9, "etcdserver: role name not found"),
        (3, "etcdserver: role name is empty"),
        (3, "etcdserver: authentication failed, invalid user ID or password"),
        (3, "etcdserver: permission not given"),
        (7, "etcdserver: permission denied"),
        (9, "etcdserver: role is not granted to the user"),
        (9, "etcdserver: permission is not granted to the role"),
        (9, "etcdserver: authentication is not enabled"),
        (16, "etcdserver: invalid auth token"),
        (3, "etcdserver: invalid auth management"),
        (3, "etcdserver: revision of auth store is old"),
        (14, "etcdserver: no leader"),
        (9, "etcdserver: not leader"),
        (14, "etcdserver: leader changed"),
        (9, "etcdserver: not capable"),
        (14, "etcdserver: server stopped"),
        (14, "etcdserver: request timed out"),
        (14, "etcdserver: request timed out, possibly due to previous leader failure"),
        (14, "etcdserver: request timed out, possibly due to connection lost"),
        (14, "etcdserver: request timed out, waiting for the applied index took too long"),
        (14, "etcdserver: unhealthy cluster"),
        (15, "etcdserver: corrupt cluster"),
        (9, "etcdserver: rpc not supported for learner"),
        (9, "etcdserver: bad leader transferee"),
        (3, "etcdserver: wrong downgrade target version format"),
        (3, "etcdserver: invalid downgrade target version"),
        (9, "etcdserver: cluster version not found during downgrade"),
        (9, "etcdserver: cluster has a downgrade job in progress"),
        (9, "etcdserver: no inflight downgrade job"),
        (1, "etcdserver: request canceled"),
        (4, "etcdserver: context deadline exceeded"),
    ];

    #[test]
    fn the_table_is_etcds() {
        let ours: Vec<(i32, &str)> = EtcdError::ALL.iter().map(|e| (e.code() as i32, e.text())).collect();
        assert_eq!(ours, ETCD);
    }

    #[test]
    fn what_asks_for_too_much_is_the_callers_mistake() {
        for error in [KeyspaceError::TooManyKeys(7), KeyspaceError::TooManyBytes(7)] {
            assert_eq!(refusal(error).code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn an_unavailable_write_says_whether_it_may_have_happened() {
        let certain = Status::from(Unavailable::NoLeader);
        assert_eq!((certain.code(), certain.message()), (Code::Unavailable, "etcdserver: no leader"));
        assert!(!Unavailable::NoLeader.may_have_happened());
        let unknown = Status::from(Unavailable::Timeout);
        assert_eq!((unknown.code(), unknown.message()), (Code::Unavailable, "etcdserver: request timed out"));
        assert!(Unavailable::Timeout.may_have_happened());
    }

    #[test]
    fn whom_an_older_leader_does_not_understand_is_told_what_to_do() {
        let status = Status::from(Unavailable::LeaderTooOld);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("upgrade the remaining members"), "{}", status.message());
        assert!(!Unavailable::LeaderTooOld.may_have_happened());
    }
}
