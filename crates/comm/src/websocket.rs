//! WebSocket transport.

use std::sync::Arc;

use oxidask_wire::Frames;
use oxidask_wire::frame::Limits;
use tokio::net::TcpStream;

use crate::address::Address;
use crate::connection::Connection;
use crate::tls::{TlsClient, TlsServer};
use crate::Error;

#[derive(Debug)]
pub(crate) struct WebSocketReader(());
#[derive(Debug)]
pub(crate) struct WebSocketWriter(());

impl WebSocketReader {
    pub(crate) async fn read(&mut self) -> Result<Option<Frames>, Error> { Ok(None) }
    pub(crate) async fn closed(&mut self) {}
    pub(crate) fn hands_shaken(&mut self) {}
}
impl WebSocketWriter {
    pub(crate) async fn write(&mut self, _frames: Frames) -> Result<(), Error> { Err(Error::Closed) }
    pub(crate) async fn close(&mut self) {}
}
pub(crate) async fn connect(_s: TcpStream, _a: &Address, _t: Option<Arc<TlsClient>>, _l: Limits) -> Result<Connection, Error> { Err(Error::WebSocket("not available".into())) }
pub(crate) async fn accept(_s: TcpStream, _t: Option<Arc<TlsServer>>, _l: Limits) -> Result<Connection, Error> { Err(Error::WebSocket("not available".into())) }
