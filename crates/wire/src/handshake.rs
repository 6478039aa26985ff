//! The first message in either direction on every connection.

use crate::{Error, Frames, Map, Result, Str, Value, map, message};

/// Name of [`Handshake::native`] in the message.
const NATIVE: &str = "oxidask";

/// The version of [`Handshake::native`] that this code speaks: calls of functions
/// by number ([`crate::stream::RunSpec::Known`]).
pub const NATIVE_VERSION: u32 = 1;

/// What a side says of itself before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Name of the compression this side would use.
    pub compression: Option<Str>,
    /// Version of Python: major, minor, micro. Nobody acts on it.
    pub python: [u32; 3],
    /// Highest pickle protocol this side reads.
    pub pickle_protocol: u32,
    /// Version of the messages that only Oxidask's own processes understand;
    /// `None` if this side does not offer them. Stock ignores the field.
    pub native: Option<u32>,
}

/// What both sides keep to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Compression, if both sides named the same.
    pub compression: Option<Str>,
    /// The lower of the two pickle protocols.
    pub pickle_protocol: u32,
    /// The lower of the two versions, if both sides offer any.
    pub native: Option<u32>,
}

impl Handshake {
    /// Without compression and with pickle protocol 5.
    ///
    /// Protocol 5 although we never unpickle: with 4, peers would put array
    /// data inside the pickle instead of in frames of its own.
    pub const fn new(python: [u32; 3]) -> Self {
        Self {
            compression: None,
            python,
            pickle_protocol: 5,
            native: None,
        }
    }

    /// As a message.
    pub fn encode(&self) -> Frames {
        let python: Vec<Value> = self.python.iter().map(|&part| Value::from(part)).collect();
        let mut fields = map! {
            "compression" => self.compression.clone(),
            "python" => python,
            "pickle-protocol" => self.pickle_protocol,
        };
        if let Some(version) = self.native {
            fields.push(NATIVE, version);
        }
        message::encode(&Value::from(fields))
    }

    /// From a message.
    ///
    /// # Errors
    /// Anything but a map, no `pickle-protocol` (a peer that is too old), a
    /// `compression` that is not text. `python` may be absent.
    pub fn decode(frames: &[bytes::Bytes]) -> Result<Self> {
        let value = message::decode(frames)?;
        let Value::Map(map) = value else {
            return Err(Error::UnexpectedType {
                field: "handshake",
                expected: "map",
                found: value.type_name(),
            });
        };
        let Some(protocol) = map.get("pickle-protocol") else {
            return Err(Error::VersionsNotInSync);
        };
        let pickle_protocol = small(protocol).ok_or(Error::UnexpectedType {
            field: "pickle-protocol",
            expected: "a small int",
            found: protocol.type_name(),
        })?;
        let compression = match map.get("compression") {
            None | Some(Value::Nil) => None,
            Some(Value::Str(name)) => Some(name.detached()),
            Some(other) => {
                return Err(Error::UnexpectedType {
                    field: "compression",
                    expected: "str or nil",
                    found: other.type_name(),
                });
            }
        };
        Ok(Self {
            compression,
            python: python_of(&map),
            pickle_protocol,
            // A version that cannot be read is none that we know.
            native: map.get(NATIVE).and_then(small),
        })
    }

    /// What results from both sides' handshakes; symmetric.
    pub fn negotiate(&self, remote: &Self) -> Negotiated {
        Negotiated {
            compression: self
                .compression
                .clone()
                .filter(|name| remote.compression.as_ref() == Some(name)),
            pickle_protocol: self.pickle_protocol.min(remote.pickle_protocol),
            native: self
                .native
                .zip(remote.native)
                .map(|(own, other)| own.min(other)),
        }
    }
}

fn small(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn python_of(map: &Map) -> [u32; 3] {
    let mut version = [0; 3];
    let parts = map.get("python").and_then(Value::as_array).unwrap_or(&[]);
    for (slot, part) in version.iter_mut().zip(parts) {
        *slot = small(part).unwrap_or(0);
    }
    version
}
