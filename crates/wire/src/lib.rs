//! Dask's wire protocol as pure values: nothing here opens a socket.
//!
//! ```text
//!  bytes of a stream ──frame──► frames ──message──► Value (payloads stay opaque `Bytes`)
//!                                                     │
//!                                        stream ──► typed stream messages
//! ```
//!
//! A payload (a task's `run_spec`, a result, an exception) is a [`Serialized`]
//! or [`Pickled`] node: a sub-header and frames that are passed on untouched.
//! Whatever is malformed is an [`Error`] that names the field; what decoding
//! allocates is bounded by what has arrived (see [`frame::Limits`] and
//! [`message::decode`]).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of a message, every type but the expected one is the same error"
)]

pub mod compression;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod key;
pub mod message;
pub mod msgpack;
pub mod pickle;
pub mod python;
pub mod stream;
pub mod value;

pub use error::{Error, Result};
pub use key::{Key, KeyRef};
pub use message::{BatchWriter, Frames, MessageWriter, decode, encode};
pub use value::{Enum, Map, Pickled, Serialized, Str, Value};
