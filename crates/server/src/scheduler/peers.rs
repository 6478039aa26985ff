//! Requests to workers and nannies, by the addresses that the core knows them by.

use oxidask_comm::{Address, ConnectionPool, Error, Scheme};
use oxidask_wire::{Map, Value, message};

/// Outgoing requests. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Peers(ConnectionPool);

impl Peers {
    pub(super) fn new(pool: ConnectionPool) -> Self {
        Self(pool)
    }

    /// Asks `op` of the server at `address`. An answer that reports an error is
    /// a value like any other.
    pub(super) async fn call(&self, address: &str, op: &str, fields: Map) -> Result<Value, Error> {
        let address = Address::parse(address, Scheme::Tcp)?;
        self.0
            .exchange(&address, &message::encode(&request(op, fields)))
            .await
    }

    /// As [`Self::call`], and acknowledges an answer with status `OK`, as
    /// `get_data` expects.
    pub(super) async fn call_acknowledged(
        &self,
        address: &str,
        op: &str,
        fields: Map,
    ) -> Result<Value, Error> {
        let address = Address::parse(address, Scheme::Tcp)?;
        let request = message::encode(&request(op, fields));
        let acknowledge = |reply: &Value| {
            let status = reply
                .as_map()
                .and_then(|reply| reply.get("status"))
                .and_then(Value::as_str);
            (status == Some("OK")).then(|| Value::from("OK"))
        };
        self.0
            .exchange_acknowledged(&address, &request, acknowledge)
            .await
    }

    /// Closes connections to a server that is gone.
    pub(super) fn remove(&self, address: &str) {
        if let Ok(address) = Address::parse(address, Scheme::Tcp) {
            self.0.remove(&address);
        }
    }
}

fn request(op: &str, mut fields: Map) -> Value {
    fields.0.insert(0, ("op".into(), op.into()));
    if !fields.contains_key("reply") {
        fields.push("reply", true);
    }
    Value::Map(fields)
}
