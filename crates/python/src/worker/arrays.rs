//! Arrays that come from elsewhere, in a form that is known: the interpreter hears of
//! them when a task needs them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use oxidask_server::worker::Datum;
use oxidask_wire::{Serialized, Value};
use oxidask_worker::task::ValueType as Type;

/// Forms that are remembered. Chosen: the chunks of a program have few.
const FORMS_MAX: usize = 1000;

/// Arrays of one sub-header differ in their bytes only.
#[derive(Default)]
pub(crate) struct Arrays(Mutex<HashMap<Bytes, Form>>);

struct Form {
    /// Bytes of the frame.
    frame_nbytes: usize,
    /// Bytes in memory, by `sizeof`.
    nbytes: i64,
    r#type: Arc<Type>,
}

impl Arrays {
    fn forms(&self) -> MutexGuard<'_, HashMap<Bytes, Form>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the form of an array that was deserialised.
    pub(crate) fn remember(&self, header: Bytes, frame_nbytes: usize, array: &Datum) {
        let form = Form {
            frame_nbytes,
            nbytes: array.nbytes,
            r#type: array.r#type.clone(),
        };
        let mut forms = self.forms();
        if forms.len() >= FORMS_MAX {
            forms.clear();
        }
        forms.insert(header, form);
    }

    /// A value from a message, if it is an array of a known form.
    pub(crate) fn of_message(&self, value: &Value) -> Option<Datum> {
        let serialized = value.as_serialized()?;
        let forms = self.forms();
        let form = forms.get(&serialized.header)?;
        let [frame] = &serialized.frames[..] else {
            return None;
        };
        (frame.len() == form.frame_nbytes)
            .then(|| Datum::serialized(serialized.clone(), form.nbytes, form.r#type.clone()))
    }

    /// Whether this is an array of a known form.
    pub(crate) fn contain(&self, serialized: &Serialized) -> bool {
        self.forms().contains_key(&serialized.header)
    }
}
