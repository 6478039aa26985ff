//! Scalars: values that a message holds as they are, so that neither sender nor
//! receiver needs the interpreter for them.

use std::sync::Arc;

use oxidask_server::worker::{Datum, Scalar};
use oxidask_wire::Value;
use oxidask_worker::task::ValueType as Type;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyString};

use super::executor::Hooks;
use super::held::Live;
use super::task::ValueType;

/// Longer text is a value like any other. Chosen: it costs less to copy than to handle.
const TEXT_NBYTES_MAX: usize = 1 << 12;

/// Bits of a digit of Python's int, and its bytes.
const DIGIT_BITS: u32 = 30;
const DIGIT_NBYTES: i64 = 4;

/// Classes of scalars and what `sizeof` says of them.
pub(crate) struct Scalars {
    none: Sized,
    r#false: Sized,
    r#true: Sized,
    zero: Sized,
    /// An int of one digit.
    int: Sized,
    float: Sized,
    /// Empty.
    text: Sized,
}

struct Sized {
    nbytes: i64,
    r#type: Arc<Type>,
}

impl Scalars {
    /// Asks the interpreter.
    pub(crate) fn new(py: Python<'_>, hooks: &Hooks) -> PyResult<Self> {
        let sized = |value: Bound<'_, PyAny>| -> PyResult<Sized> {
            let described = hooks.describe.bind(py).call1((value,))?;
            let (nbytes, r#type) = described.extract::<(i64, Bound<'_, ValueType>)>()?;
            Ok(Sized {
                nbytes,
                r#type: r#type.get().0.clone(),
            })
        };
        Ok(Self {
            none: sized(py.None().into_bound(py))?,
            r#false: sized(PyBool::new(py, false).to_owned().into_any())?,
            r#true: sized(PyBool::new(py, true).to_owned().into_any())?,
            zero: sized(0_i64.into_pyobject(py)?.into_any())?,
            int: sized(1_i64.into_pyobject(py)?.into_any())?,
            float: sized(PyFloat::new(py, 0.0).into_any())?,
            text: sized(PyString::new(py, "").into_any())?,
        })
    }

    /// A result, if it is a scalar.
    pub(crate) fn of_python(&self, value: &Bound<'_, PyAny>) -> Option<Datum> {
        let scalar = if value.is_none() {
            Scalar::None
        } else if let Ok(value) = value.cast_exact::<PyBool>() {
            Scalar::Bool(value.is_true())
        } else if let Ok(value) = value.cast_exact::<PyInt>() {
            Scalar::Int(value.extract().ok()?)
        } else if let Ok(value) = value.cast_exact::<PyFloat>() {
            Scalar::Float(value.value())
        } else {
            let value = value.cast_exact::<PyString>().ok()?;
            // Other text would take a second form and be larger from then on.
            let is_ascii = value.call_method0(intern!(value.py(), "isascii")).ok()?;
            if value.len().ok()? > TEXT_NBYTES_MAX || !is_ascii.is_truthy().ok()? {
                return None;
            }
            Scalar::Str(value.to_str().ok()?.into())
        };
        let datum = self.sized(scalar)?;
        datum.set_object(Arc::new(Live::new(value.clone().unbind())));
        Some(datum)
    }

    /// A value from a message, if it is a scalar.
    pub(crate) fn of_message(&self, value: &Value) -> Option<Datum> {
        self.sized(Scalar::from_value(value)?)
    }

    fn sized(&self, scalar: Scalar) -> Option<Datum> {
        let (sized, more) = match &scalar {
            Scalar::None => (&self.none, 0),
            Scalar::Bool(false) => (&self.r#false, 0),
            Scalar::Bool(true) => (&self.r#true, 0),
            Scalar::Int(0) => (&self.zero, 0),
            Scalar::Int(number) => {
                let bits = u64::BITS - number.unsigned_abs().leading_zeros();
                let digits = bits.div_ceil(DIGIT_BITS);
                (&self.int, (i64::from(digits) - 1) * DIGIT_NBYTES)
            }
            Scalar::Float(_) => (&self.float, 0),
            Scalar::Str(text) if text.is_ascii() && text.len() <= TEXT_NBYTES_MAX => {
                (&self.text, text.len() as i64)
            }
            Scalar::Str(_) => return None,
        };
        let nbytes = sized.nbytes + more;
        Some(Datum::scalar(scalar, nbytes, sized.r#type.clone()))
    }
}

/// The object that a scalar is.
pub(crate) fn to_python(py: Python<'_>, scalar: &Scalar) -> PyResult<Py<PyAny>> {
    Ok(match scalar {
        Scalar::None => py.None(),
        Scalar::Bool(value) => value.into_pyobject(py)?.to_owned().into_any().unbind(),
        Scalar::Int(number) => number.into_pyobject(py)?.into_any().unbind(),
        Scalar::Float(number) => number.into_pyobject(py)?.into_any().unbind(),
        Scalar::Str(text) => PyString::new(py, text).into_any().unbind(),
    })
}
