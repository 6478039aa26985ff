//! Transports, requests and batched streams of Dask's protocol, on tokio.
//!
//! ```text
//!  Listener::accept ─► Incoming::establish ─┐
//!                                           ├─► Connection { reader, writer } ─► BatchedSender
//!  connect ─────────────────────────────────┘                │
//!                                                            └─ ConnectionPool::call
//! ```
//!
//! A connection carries messages as frames; what they mean is `oxidask-wire`'s
//! and the server's business. A malformed message is an error that ends its
//! connection and no other.

mod address;
mod batched;
mod connect;
mod connection;
mod error;
mod listener;
pub mod local;
mod options;
mod pool;
mod tcp;
pub mod tls;
mod ws;

pub use address::{Address, Scheme};
pub use batched::{BatchedSender, BatchedTask};
pub use connect::connect;
pub use connection::{Connection, Info, Reader, Writer};
pub use error::{Error, Result};
pub use listener::{Incoming, Listener};
pub use options::Options;
pub use pool::ConnectionPool;
