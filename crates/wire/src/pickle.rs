//! The few pickles that a scheduler writes itself, and a reader of plain ones.
//!
//! Nothing here imports, calls or builds a class while reading.

use bytes::Bytes;

use crate::msgpack::{DEPTH_MAX, Reader, Token};
use crate::{Error, Key, Map, Result, Str, Value};

mod op {
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const STOP: u8 = b'.';
    pub(super) const MARK: u8 = b'(';
    pub(super) const NONE: u8 = b'N';
    pub(super) const TRUE: u8 = 0x88;
    pub(super) const FALSE: u8 = 0x89;
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const BININT: u8 = b'J';
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const SHORT_BINBYTES: u8 = b'C';
    pub(super) const BINBYTES: u8 = b'B';
    pub(super) const BINBYTES8: u8 = 0x8e;
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const LIST: u8 = b'l';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const DICT: u8 = b'd';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_SET: u8 = 0x8f;
    pub(super) const ADDITEMS: u8 = 0x90;
    pub(super) const FROZENSET: u8 = 0x91;
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const FRAME: u8 = 0x95;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
}

/// Codes of the extensions in the arguments of a call; see `docs/graph-helper.md`.
pub mod argument {
    /// msgpack of a key: what this task makes.
    pub const REFERENCE: i8 = 1;
    /// A list of values.
    pub const LIST: i8 = 2;
    /// A tuple of values.
    pub const TUPLE: i8 = 3;
    /// A dict, as an array of pairs.
    pub const DICT: i8 = 4;
    /// A list of arguments, references among them.
    pub const NODE_LIST: i8 = 5;
    /// A tuple of arguments, references among them.
    pub const NODE_TUPLE: i8 = 6;
    /// The pickle of anything else that is small.
    pub const PICKLE: i8 = 7;
}

/// The pickle of `Task(key, function, *args)` of `dask._task_spec`.
///
/// `function` is a pickle of its own and stays one: it is loaded by a nested
/// `pickle.loads`, so that the memo indices of both cannot clash. `arguments`
/// is msgpack `[args]`, `[args, kwargs]` or `[args, kwargs, data_producer]`
/// whose values are scalars or the extensions of `docs/graph-helper.md`.
///
/// # Errors
/// Malformed `arguments`.
pub fn task_pickle(key: &Key, function: &[u8], arguments: &[u8]) -> Result<Vec<u8>> {
    let mut reader = Reader::of_slice(arguments, "call arguments");
    let parts = reader.array_len()?;
    if !(1..=3).contains(&parts) {
        return Err(Error::Inconsistent {
            field: "call arguments",
            value: parts as u64,
        });
    }
    let count = reader.array_len()?;
    let args_start = reader.position();
    for _ in 0..count {
        reader.skip()?;
    }
    let kwargs_count = match parts {
        1 => 0,
        _ => reader.map_len()?,
    };
    let kwargs_start = reader.position();
    for _ in 0..2 * kwargs_count {
        reader.skip()?;
    }
    let data_producer = parts == 3 && reader.bool()?;
    reader.finish()?;

    let mut pickle = Pickler::new(function.len() + 2 * arguments.len() + 160);
    // `Task` takes `_data_producer` by name only; REDUCE has no keywords, hence `apply`.
    let by_name = kwargs_count > 0 || data_producer;
    if by_name {
        pickle.global("dask.utils", "apply");
    }
    pickle.global("dask._task_spec", "Task");
    pickle.op(op::MARK);
    pickle.key(key);
    pickle.loads(function);
    reader.seek(args_start);
    for _ in 0..count {
        pickle.argument(&mut reader, 0)?;
    }
    pickle.op(op::TUPLE);
    if by_name {
        pickle.op(op::EMPTY_DICT);
        pickle.op(op::MARK);
        reader.seek(kwargs_start);
        for _ in 0..kwargs_count {
            pickle.str(reader.str()?);
            pickle.argument(&mut reader, 0)?;
        }
        if data_producer {
            pickle.str("_data_producer");
            pickle.op(op::TRUE);
        }
        pickle.op(op::SETITEMS);
        pickle.op(op::TUPLE3);
    }
    pickle.op(op::REDUCE);
    Ok(pickle.finish())
}

/// A constant that a pickle written here may hold.
#[derive(Clone, Debug, PartialEq)]
pub enum PickleArg<'a> {
    /// `None`
    None,
    /// bool
    Bool(bool),
    /// int
    Int(i64),
    /// float
    Float(f64),
    /// str
    Str(&'a str),
    /// bytes
    Bytes(&'a [u8]),
    /// A task key, as Python knows it.
    Key(&'a Key),
    /// tuple
    Tuple(Vec<PickleArg<'a>>),
    /// list
    List(Vec<PickleArg<'a>>),
    /// set of hashable values
    Set(Vec<PickleArg<'a>>),
    /// dict
    Dict(Vec<(PickleArg<'a>, PickleArg<'a>)>),
    /// `types.SimpleNamespace`
    Namespace(Vec<(&'a str, PickleArg<'a>)>),
    /// A class or function by its module and name.
    Global(&'a str, &'a str),
}

/// The pickle of a constant.
pub fn plain_pickle(value: &PickleArg<'_>) -> Vec<u8> {
    let mut pickle = Pickler::new(64);
    pickle.constant(value);
    pickle.finish()
}

/// The pickle of `module.class(*args)`, for exceptions that the scheduler raises.
///
/// Meant for built-in classes (`builtins`) and those of `distributed` whose
/// constructors take their `args`.
pub fn exception_pickle(module: &str, class: &str, args: &[PickleArg<'_>]) -> Vec<u8> {
    let mut pickle = Pickler::new(128);
    pickle.global(module, class);
    pickle.op(op::MARK);
    for arg in args {
        pickle.constant(arg);
    }
    pickle.op(op::TUPLE);
    pickle.op(op::REDUCE);
    pickle.finish()
}

/// `distributed.scheduler.KilledWorker`.
///
/// The worker is a `SimpleNamespace` with `address` and `name`: stock pickles
/// its whole `WorkerState`, of which the text shows only the address.
///
/// `attempts` are lines that `str` appends to stock's text. The class puts that text
/// together itself, so that the exception is then of a nameless subclass that the
/// pickle makes. It needs nothing but the standard library, and can be pickled again:
///
/// ```text
///  type("KilledWorker", (KilledWorker,), {"__str__": partialmethod(getattr, "text"),
///       "__reduce_ex__": partialmethod(getattr, "reduced"), …})(task, worker, allowed)
///  reduced = (loads, (the pickle of this,), {"text": …, "reduced": reduced})
/// ```
pub fn killed_worker(
    task: &Key,
    address: &str,
    name: &Value,
    allowed_failures: i64,
    attempts: &[String],
) -> Vec<u8> {
    let name = match name {
        Value::Str(text) => PickleArg::Str(text),
        Value::Int(number) => PickleArg::Int(*number),
        Value::Float(number) => PickleArg::Float(*number),
        Value::Bool(flag) => PickleArg::Bool(*flag),
        _ => PickleArg::Str(address),
    };
    let worker = PickleArg::Namespace(vec![("address", PickleArg::Str(address)), ("name", name)]);
    let args = [
        PickleArg::Key(task),
        worker,
        PickleArg::Int(allowed_failures),
    ];
    let (module, class) = ("distributed.scheduler", "KilledWorker");
    if attempts.is_empty() {
        return exception_pickle(module, class, &args);
    }
    let mut text = format!(
        "Attempted to run task {} on {} different workers, but all those workers died while \
         running it. The last worker that attempt to run the task was {address}. Inspecting \
         worker logs is often a good next step to diagnose what went wrong. For more information \
         see https://distributed.dask.org/en/stable/killed.html.",
        task.python_repr(),
        allowed_failures.saturating_add(1),
    );
    for attempt in attempts {
        text.push('\n');
        text.push_str(attempt);
    }

    let mut bare = Pickler::new(512);
    bare.global("builtins", "type");
    bare.op(op::MARK);
    bare.str(class);
    bare.global(module, class);
    bare.op(op::TUPLE1);
    bare.op(op::EMPTY_DICT);
    bare.op(op::MARK);
    bare.str("__module__");
    bare.str(module);
    for (method, attribute) in [("__str__", "text"), ("__reduce_ex__", "reduced")] {
        bare.str(method);
        bare.global("functools", "partialmethod");
        bare.op(op::MARK);
        bare.global("builtins", "getattr");
        bare.str(attribute);
        bare.op(op::TUPLE);
        bare.op(op::REDUCE);
    }
    bare.op(op::SETITEMS);
    bare.op(op::TUPLE);
    bare.op(op::REDUCE);
    bare.op(op::MARK);
    for arg in &args {
        bare.constant(arg);
    }
    bare.op(op::TUPLE);
    bare.op(op::REDUCE);

    let mut pickle = Pickler::new(1024);
    // In the memo: 0 is `loads`, 1 its arguments, 2 the state.
    pickle.global("_pickle", "loads");
    pickle.bytes(&bare.finish());
    pickle
        .out
        .extend_from_slice(&[op::TUPLE1, op::MEMOIZE, op::REDUCE]);
    pickle
        .out
        .extend_from_slice(&[op::EMPTY_DICT, op::MEMOIZE, op::MARK]);
    pickle.str("text");
    pickle.str(&text);
    pickle.str("reduced");
    for index in 0..3 {
        pickle.out.extend_from_slice(&[op::BINGET, index]);
    }
    pickle
        .out
        .extend_from_slice(&[op::TUPLE3, op::SETITEMS, op::BUILD]);
    pickle.finish()
}

/// `distributed.scheduler.NoWorkerError`; `timeout` in seconds.
pub fn no_worker_error(task: &Key, timeout: f64) -> Vec<u8> {
    exception_pickle(
        "distributed.scheduler",
        "NoWorkerError",
        &[PickleArg::Key(task), PickleArg::Float(timeout)],
    )
}

/// `distributed.scheduler.NoValidWorkerError`; absent restrictions are `None`
/// in its text, `timeout` is in seconds.
pub fn no_valid_worker_error(
    task: &Key,
    host_restrictions: Option<&[&str]>,
    worker_restrictions: Option<&[&str]>,
    resource_restrictions: Option<&[(&str, f64)]>,
    timeout: f64,
) -> Vec<u8> {
    fn names<'a>(names: Option<&[&'a str]>) -> PickleArg<'a> {
        names.map_or(PickleArg::None, |names| {
            PickleArg::Set(names.iter().map(|name| PickleArg::Str(name)).collect())
        })
    }
    let resources = resource_restrictions.map_or(PickleArg::None, |resources| {
        let pairs = resources.iter();
        PickleArg::Dict(
            pairs
                .map(|&(name, amount)| (PickleArg::Str(name), number(amount)))
                .collect(),
        )
    });
    exception_pickle(
        "distributed.scheduler",
        "NoValidWorkerError",
        &[
            PickleArg::Key(task),
            names(host_restrictions),
            names(worker_restrictions),
            resources,
            PickleArg::Float(timeout),
        ],
    )
}

/// Amounts of resources are written as whole numbers by most users and shown so.
fn number(amount: f64) -> PickleArg<'static> {
    if amount.fract() == 0.0 && amount.abs() < 9e15 {
        PickleArg::Int(amount as i64)
    } else {
        PickleArg::Float(amount)
    }
}

/// Appends opcodes of protocol 5.
struct Pickler {
    out: Vec<u8>,
    /// Globals in the order of their memo indices.
    globals: Vec<(String, String)>,
}

impl Pickler {
    fn new(capacity: usize) -> Self {
        let mut out = Vec::with_capacity(capacity);
        out.extend_from_slice(&[op::PROTO, 5]);
        Self {
            out,
            globals: Vec::new(),
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.out.push(op::STOP);
        self.out
    }

    fn op(&mut self, op: u8) {
        self.out.push(op);
    }

    /// A class or function; looked up once, then taken from the memo.
    fn global(&mut self, module: &str, name: &str) {
        let known = self
            .globals
            .iter()
            .position(|(m, n)| m == module && n == name);
        if let Some(index) = known.and_then(|index| u8::try_from(index).ok()) {
            self.out.extend_from_slice(&[op::BINGET, index]);
            return;
        }
        self.out.push(op::GLOBAL);
        self.out.extend_from_slice(module.as_bytes());
        self.out.push(b'\n');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(&[b'\n', op::MEMOIZE]);
        self.globals.push((module.to_owned(), name.to_owned()));
    }

    fn loads(&mut self, pickle: &[u8]) {
        self.global("_pickle", "loads");
        self.bytes(pickle);
        self.out.extend_from_slice(&[op::TUPLE1, op::REDUCE]);
    }

    fn bool(&mut self, value: bool) {
        self.out.push(if value { op::TRUE } else { op::FALSE });
    }

    fn int(&mut self, value: i64) {
        if let Ok(value) = u8::try_from(value) {
            self.out.extend_from_slice(&[op::BININT1, value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.out.push(op::BININT2);
            self.out.extend_from_slice(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.out.push(op::BININT);
            self.out.extend_from_slice(&value.to_le_bytes());
        } else {
            self.out.extend_from_slice(&[op::LONG1, 8]);
            self.out.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn uint(&mut self, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.int(value),
            Err(_) => {
                // A ninth byte keeps the sign bit clear.
                self.out.extend_from_slice(&[op::LONG1, 9]);
                self.out.extend_from_slice(&value.to_le_bytes());
                self.out.push(0);
            }
        }
    }

    fn float(&mut self, value: f64) {
        self.out.push(op::BINFLOAT);
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    fn str(&mut self, value: &str) {
        self.sized(
            [op::SHORT_BINUNICODE, op::BINUNICODE, op::BINUNICODE8],
            value.as_bytes(),
        );
    }

    fn bytes(&mut self, value: &[u8]) {
        self.sized([op::SHORT_BINBYTES, op::BINBYTES, op::BINBYTES8], value);
    }

    fn sized(&mut self, [short, medium, long]: [u8; 3], value: &[u8]) {
        if let Ok(nbytes) = u8::try_from(value.len()) {
            self.out.extend_from_slice(&[short, nbytes]);
        } else if let Ok(nbytes) = u32::try_from(value.len()) {
            self.out.push(medium);
            self.out.extend_from_slice(&nbytes.to_le_bytes());
        } else {
            self.out.push(long);
            self.out
                .extend_from_slice(&(value.len() as u64).to_le_bytes());
        }
        self.out.extend_from_slice(value);
    }

    fn key(&mut self, key: &Key) {
        self.key_part(&mut Reader::of_slice(key.as_msgpack(), "key"));
    }

    fn key_part(&mut self, reader: &mut Reader<'_>) {
        match reader.token().expect("a key is valid msgpack") {
            Token::Bool(value) => self.bool(value),
            Token::Int(value) => self.int(value),
            Token::UInt(value) => self.uint(value),
            Token::Float(value) => self.float(value),
            Token::Str(range) => self.sized(
                [op::SHORT_BINUNICODE, op::BINUNICODE, op::BINUNICODE8],
                reader.slice(range),
            ),
            Token::Bin(range) => self.bytes(reader.slice(range)),
            Token::Array(count) => {
                self.op(op::MARK);
                for _ in 0..count {
                    self.key_part(reader);
                }
                self.op(op::TUPLE);
            }
            Token::Nil | Token::Map(_) | Token::Ext(..) => {
                unreachable!("a key holds no such value")
            }
        }
    }

    fn argument(&mut self, reader: &mut Reader<'_>, depth: usize) -> Result<()> {
        if depth >= DEPTH_MAX {
            return Err(reader.too_deep());
        }
        match reader.token()? {
            Token::Nil => self.op(op::NONE),
            Token::Bool(value) => self.bool(value),
            Token::Int(value) => self.int(value),
            Token::UInt(value) => self.uint(value),
            Token::Float(value) => self.float(value),
            Token::Str(range) => self.sized(
                [op::SHORT_BINUNICODE, op::BINUNICODE, op::BINUNICODE8],
                reader.slice(range),
            ),
            Token::Bin(range) => self.bytes(reader.slice(range)),
            Token::Ext(kind, range) => self.extension(kind, reader.slice(range), depth)?,
            Token::Array(_) | Token::Map(_) => {
                return Err(Error::Pickle {
                    field: "a call argument",
                    reason: "containers are written as extensions",
                });
            }
        }
        Ok(())
    }

    fn extension(&mut self, kind: i8, payload: &[u8], depth: usize) -> Result<()> {
        let mut reader = Reader::of_slice(payload, "call argument");
        match kind {
            argument::REFERENCE => {
                let key = Key::from_msgpack(payload)?;
                self.global("dask._task_spec", "TaskRef");
                self.key(&key);
                self.out.extend_from_slice(&[op::TUPLE1, op::REDUCE]);
                return Ok(());
            }
            argument::LIST => {
                self.out.extend_from_slice(&[op::EMPTY_LIST, op::MARK]);
                self.items(&mut reader, depth)?;
                self.op(op::APPENDS);
            }
            argument::TUPLE => {
                self.op(op::MARK);
                self.items(&mut reader, depth)?;
                self.op(op::TUPLE);
            }
            argument::DICT => {
                self.out.extend_from_slice(&[op::EMPTY_DICT, op::MARK]);
                for _ in 0..reader.array_len()? {
                    let count = reader.array_len()?;
                    if count != 2 {
                        return Err(Error::Inconsistent {
                            field: "length of a dict item",
                            value: count as u64,
                        });
                    }
                    self.argument(&mut reader, depth + 1)?;
                    self.argument(&mut reader, depth + 1)?;
                }
                self.op(op::SETITEMS);
            }
            argument::NODE_LIST | argument::NODE_TUPLE => {
                let is_list = kind == argument::NODE_LIST;
                let class = if is_list { "List" } else { "Tuple" };
                self.global("dask._task_spec", class);
                // A single argument that is a list (tuple) would be taken for
                // the items themselves, so one is always passed that way.
                self.op(op::MARK);
                if is_list {
                    self.out.extend_from_slice(&[op::EMPTY_LIST, op::MARK]);
                } else {
                    self.op(op::MARK);
                }
                self.items(&mut reader, depth)?;
                self.op(if is_list { op::APPENDS } else { op::TUPLE });
                self.out.extend_from_slice(&[op::TUPLE, op::REDUCE]);
            }
            argument::PICKLE => {
                self.loads(payload);
                return Ok(());
            }
            _ => {
                return Err(Error::Pickle {
                    field: "a call argument",
                    reason: "unknown extension",
                });
            }
        }
        reader.finish()
    }

    fn items(&mut self, reader: &mut Reader<'_>, depth: usize) -> Result<()> {
        for _ in 0..reader.array_len()? {
            self.argument(reader, depth + 1)?;
        }
        Ok(())
    }

    fn constant(&mut self, value: &PickleArg<'_>) {
        match value {
            PickleArg::None => self.op(op::NONE),
            PickleArg::Bool(value) => self.bool(*value),
            PickleArg::Int(value) => self.int(*value),
            PickleArg::Float(value) => self.float(*value),
            PickleArg::Str(value) => self.str(value),
            PickleArg::Bytes(value) => self.bytes(value),
            PickleArg::Key(key) => self.key(key),
            PickleArg::Tuple(items) => {
                self.op(op::MARK);
                self.constants(items);
                self.op(op::TUPLE);
            }
            PickleArg::List(items) => {
                self.out.extend_from_slice(&[op::EMPTY_LIST, op::MARK]);
                self.constants(items);
                self.op(op::APPENDS);
            }
            PickleArg::Set(items) => {
                self.out.extend_from_slice(&[op::EMPTY_SET, op::MARK]);
                self.constants(items);
                self.op(op::ADDITEMS);
            }
            PickleArg::Dict(pairs) => {
                self.out.extend_from_slice(&[op::EMPTY_DICT, op::MARK]);
                for (key, value) in pairs {
                    self.constant(key);
                    self.constant(value);
                }
                self.op(op::SETITEMS);
            }
            PickleArg::Namespace(pairs) => {
                self.global("types", "SimpleNamespace");
                self.out.extend_from_slice(&[
                    op::EMPTY_TUPLE,
                    op::REDUCE,
                    op::EMPTY_DICT,
                    op::MARK,
                ]);
                for (name, value) in pairs {
                    self.str(name);
                    self.constant(value);
                }
                self.out.extend_from_slice(&[op::SETITEMS, op::BUILD]);
            }
            PickleArg::Global(module, name) => self.global(module, name),
        }
    }

    fn constants(&mut self, items: &[PickleArg<'_>]) {
        for item in items {
            self.constant(item);
        }
    }
}

/// A pickle that holds more than plain containers, text and numbers, or is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a plain pickle")]
pub struct NotPlain;

/// Reads a pickle of dicts, lists, tuples, sets, text, bytes, numbers, bools
/// and `None`; lists and tuples both become arrays.
///
/// Takes time and memory proportional to the pickle's length. Any opcode that
/// would import or call something is refused, and so is a container that
/// occurs twice, integers beyond 64 bits, and nesting beyond 512.
///
/// # Errors
/// [`NotPlain`] for everything else.
pub fn read_plain(pickle: &[u8]) -> std::result::Result<Value, NotPlain> {
    Unpickler {
        input: pickle,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
    }
    .run()
}

struct Unpickler<'a> {
    input: &'a [u8],
    /// Values with the depth of containers inside them.
    stack: Vec<(Value, usize)>,
    marks: Vec<usize>,
    /// Values that may be used again; containers may not.
    memo: Vec<Option<Value>>,
}

type Plain<T> = std::result::Result<T, NotPlain>;

impl Unpickler<'_> {
    fn run(mut self) -> Plain<Value> {
        loop {
            let [opcode] = self.array::<1>()?;
            match opcode {
                op::PROTO => {
                    self.array::<1>()?;
                }
                op::FRAME => {
                    self.array::<8>()?;
                }
                op::STOP => {
                    let (value, _) = self.stack.pop().ok_or(NotPlain)?;
                    let finished = self.stack.is_empty() && self.marks.is_empty();
                    return if finished { Ok(value) } else { Err(NotPlain) };
                }
                op::MARK => self.marks.push(self.stack.len()),
                op::NONE => self.push(Value::Nil),
                op::TRUE => self.push(Value::Bool(true)),
                op::FALSE => self.push(Value::Bool(false)),
                op::BININT1 => {
                    let value = u8::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                op::BININT2 => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                op::BININT => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                op::LONG1 => {
                    let value = self.long()?;
                    self.push(value);
                }
                op::BINFLOAT => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(value));
                }
                op::SHORT_BINUNICODE => {
                    let nbytes = u8::from_le_bytes(self.array()?).into();
                    self.text(nbytes)?;
                }
                op::BINUNICODE => {
                    let nbytes = u32::from_le_bytes(self.array()?).into();
                    self.text(nbytes)?;
                }
                op::BINUNICODE8 => {
                    let nbytes = u64::from_le_bytes(self.array()?);
                    self.text(nbytes)?;
                }
                op::SHORT_BINBYTES => {
                    let nbytes = u8::from_le_bytes(self.array()?).into();
                    self.bytes(nbytes)?;
                }
                op::BINBYTES => {
                    let nbytes = u32::from_le_bytes(self.array()?).into();
                    self.bytes(nbytes)?;
                }
                op::BINBYTES8 => {
                    let nbytes = u64::from_le_bytes(self.array()?);
                    self.bytes(nbytes)?;
                }
                op::EMPTY_TUPLE | op::EMPTY_LIST => self.push(Value::Array(Vec::new())),
                op::EMPTY_DICT => self.push(Value::Map(Map::new())),
                op::EMPTY_SET => self.push(Value::Set(Vec::new())),
                op::TUPLE1 => self.tuple(1)?,
                op::TUPLE2 => self.tuple(2)?,
                op::TUPLE3 => self.tuple(3)?,
                op::TUPLE | op::LIST => {
                    let count = self.since_mark()?;
                    self.tuple(count)?;
                }
                op::FROZENSET => {
                    let count = self.since_mark()?;
                    let (values, depth) = self.pop_many(count)?;
                    self.push_container(Value::Set(values), depth)?;
                }
                op::DICT => {
                    let count = self.since_mark()?;
                    let (values, depth) = self.pop_many(count)?;
                    self.push_container(Value::Map(pairs(values)?), depth)?;
                }
                op::APPEND => self.extend(1)?,
                op::APPENDS | op::ADDITEMS | op::SETITEMS => {
                    let count = self.since_mark()?;
                    self.extend(count)?;
                }
                op::SETITEM => self.extend(2)?,
                op::MEMOIZE => self.memoize(self.memo.len())?,
                op::BINPUT => {
                    let index = u8::from_le_bytes(self.array()?);
                    self.memoize(index.into())?;
                }
                op::LONG_BINPUT => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.memoize(index as usize)?;
                }
                op::BINGET => {
                    let index = u8::from_le_bytes(self.array()?);
                    self.recall(index.into())?;
                }
                op::LONG_BINGET => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.recall(index as usize)?;
                }
                _ => return Err(NotPlain),
            }
        }
    }

    fn take(&mut self, nbytes: u64) -> Plain<&[u8]> {
        let nbytes = usize::try_from(nbytes).map_err(|_| NotPlain)?;
        let (taken, rest) = self.input.split_at_checked(nbytes).ok_or(NotPlain)?;
        self.input = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Plain<[u8; N]> {
        Ok(self.take(N as u64)?.try_into().expect("take gave N bytes"))
    }

    fn push(&mut self, value: Value) {
        self.stack.push((value, 0));
    }

    fn long(&mut self) -> Plain<Value> {
        let nbytes = u8::from_le_bytes(self.array()?);
        let digits = self.take(nbytes.into())?;
        let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        wide.get_mut(..digits.len())
            .ok_or(NotPlain)?
            .copy_from_slice(digits);
        let value = i128::from_le_bytes(wide);
        match (i64::try_from(value), u64::try_from(value)) {
            (Ok(value), _) => Ok(Value::Int(value)),
            (_, Ok(value)) => Ok(Value::UInt(value)),
            (Err(_), Err(_)) => Err(NotPlain),
        }
    }

    fn text(&mut self, nbytes: u64) -> Plain<()> {
        let text = std::str::from_utf8(self.take(nbytes)?).map_err(|_| NotPlain)?;
        let text = Value::Str(Str::from(text));
        self.push(text);
        Ok(())
    }

    fn bytes(&mut self, nbytes: u64) -> Plain<()> {
        let bytes = Value::Bin(Bytes::copy_from_slice(self.take(nbytes)?));
        self.push(bytes);
        Ok(())
    }

    fn since_mark(&mut self) -> Plain<usize> {
        let mark = self.marks.pop().ok_or(NotPlain)?;
        self.stack.len().checked_sub(mark).ok_or(NotPlain)
    }

    fn pop_many(&mut self, count: usize) -> Plain<(Vec<Value>, usize)> {
        let start = self.stack.len().checked_sub(count).ok_or(NotPlain)?;
        let mut depth = 0;
        let mut values = Vec::with_capacity(count);
        for (value, below) in self.stack.drain(start..) {
            depth = depth.max(below);
            values.push(value);
        }
        Ok((values, depth))
    }

    fn push_container(&mut self, value: Value, depth_inside: usize) -> Plain<()> {
        // Deeper values could not be dropped or written without exhausting the stack.
        if depth_inside >= DEPTH_MAX {
            return Err(NotPlain);
        }
        self.stack.push((value, depth_inside + 1));
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Plain<()> {
        let (values, depth) = self.pop_many(count)?;
        self.push_container(Value::Array(values), depth)
    }

    /// Adds the last `count` values to the container below them.
    fn extend(&mut self, count: usize) -> Plain<()> {
        let (values, inside) = self.pop_many(count)?;
        let (container, depth) = self.stack.last_mut().ok_or(NotPlain)?;
        match container {
            Value::Array(items) | Value::Set(items) => items.extend(values),
            Value::Map(map) => map.0.extend(pairs(values)?.0),
            _ => return Err(NotPlain),
        }
        *depth = (*depth).max(inside + 1);
        if *depth > DEPTH_MAX {
            return Err(NotPlain);
        }
        Ok(())
    }

    fn memoize(&mut self, index: usize) -> Plain<()> {
        // Picklers number densely; an index far ahead is an attempt at our memory.
        if index > self.memo.len() {
            return Err(NotPlain);
        }
        let (value, _) = self.stack.last().ok_or(NotPlain)?;
        let reusable = match value {
            Value::Array(_) | Value::Map(_) | Value::Set(_) => None,
            value => Some(value.clone()),
        };
        if index == self.memo.len() {
            self.memo.push(reusable);
        } else {
            self.memo[index] = reusable;
        }
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Plain<()> {
        let value = self.memo.get(index).cloned().flatten().ok_or(NotPlain)?;
        self.push(value);
        Ok(())
    }
}

fn pairs(values: Vec<Value>) -> Plain<Map> {
    if !values.len().is_multiple_of(2) {
        return Err(NotPlain);
    }
    let mut pairs = Vec::with_capacity(values.len() / 2);
    let mut values = values.into_iter();
    while let (Some(key), Some(value)) = (values.next(), values.next()) {
        pairs.push((key, value));
    }
    Ok(Map(pairs))
}
