//! Why bytes are not a message.

/// A malformed message, or a value that cannot be written.
///
/// Every variant names the field concerned, so that the log of a closed
/// connection says what the peer got wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end inside a field.
    #[error("{field} is truncated: {needed} more bytes announced than present")]
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Bytes announced beyond those present.
        needed: u64,
    },
    /// Bytes are left over after a complete value.
    #[error("{field} is followed by {count} unexpected bytes")]
    TrailingBytes {
        /// What was being read.
        field: &'static str,
        /// Bytes left over.
        count: u64,
    },
    /// A length, count or depth is beyond what is accepted.
    #[error("{field} is {value}, more than the limit {limit}")]
    LimitExceeded {
        /// The length, count or depth.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The greatest accepted value.
        limit: u64,
    },
    /// A value has a type that its place does not allow.
    #[error("{field} is {found}, expected {expected}")]
    UnexpectedType {
        /// Where the value is.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A message lacks a field.
    #[error("`{message}` has no field `{field}`")]
    MissingField {
        /// The operation or structure.
        message: &'static str,
        /// The absent field.
        field: &'static str,
    },
    /// A str is not UTF-8.
    #[error("{field} is not UTF-8")]
    InvalidUtf8 {
        /// Where the text is.
        field: &'static str,
    },
    /// A byte that begins no msgpack value.
    #[error("{field} holds the invalid msgpack marker 0x{marker:02x}")]
    InvalidMarker {
        /// What was being read.
        field: &'static str,
        /// The byte.
        marker: u8,
    },
    /// A special node refers to frames that the message does not have.
    #[error("{field} refers to frames {offset}..{end} of a message of {count}")]
    OffsetOutOfRange {
        /// `__Serialized__` or `__Pickled__`.
        field: &'static str,
        /// First frame.
        offset: u64,
        /// One past the last frame.
        end: u64,
        /// Frames of the message.
        count: u64,
    },
    /// Two special nodes claim one frame.
    #[error("{field} claims frame {offset}, which belongs to another value")]
    SharedFrame {
        /// `__Serialized__` or `__Pickled__`.
        field: &'static str,
        /// The frame.
        offset: u64,
    },
    /// A number that contradicts another one of the same message.
    #[error("{field} is {value}, which contradicts the message")]
    Inconsistent {
        /// The number.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A compression nobody announced.
    #[error("unknown compression `{name}`")]
    UnknownCompression {
        /// Name as received.
        name: String,
    },
    /// A compressed frame cannot be restored.
    #[error("cannot decompress a {name} frame: {reason}")]
    Decompress {
        /// Algorithm.
        name: &'static str,
        /// What the algorithm's library says.
        reason: String,
    },
    /// The handshake of a peer that is too old.
    #[error(
        "handshake has no `pickle-protocol`: the versions of dask and distributed may not be in sync"
    )]
    VersionsNotInSync,
    /// A call that cannot be turned into a pickle.
    #[error("cannot pickle {field}: {reason}")]
    Pickle {
        /// The part of the call.
        field: &'static str,
        /// Why.
        reason: &'static str,
    },
}

/// The result of reading or writing the wire format.
pub type Result<T> = std::result::Result<T, Error>;
