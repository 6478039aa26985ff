//! What a peer can do to us: errors that name the field, memory within bounds.
#![expect(unsafe_code, reason = "a counting allocator is the test's instrument")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use oxidask_wire::compression::Compression;
use oxidask_wire::frame::{ALLOCATION_AHEAD_MAX, Decoder, Limits};
use oxidask_wire::msgpack::Writer;
use oxidask_wire::pickle::{NotPlain, read_plain};
use oxidask_wire::stream::{decode_client_batch, decode_worker_batch};
use oxidask_wire::{Error, Frames, Serialized, Value, decode, encode, map};

struct Counting;

thread_local! {
    static NBYTES: Cell<usize> = const { Cell::new(0) };
    static NBYTES_MAX: Cell<usize> = const { Cell::new(0) };
}

fn count(grown: usize, shrunk: usize) {
    let nbytes = NBYTES.get().saturating_add(grown).saturating_sub(shrunk);
    NBYTES.set(nbytes);
    NBYTES_MAX.set(NBYTES_MAX.get().max(nbytes));
}

// SAFETY: every call is passed to the system allocator unchanged; the counters
// are thread-local cells without destructors and do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller upholds `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller upholds `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, nbytes: usize) -> *mut u8 {
        count(nbytes, layout.size());
        // SAFETY: the caller upholds `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, nbytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `run` and the most bytes it had allocated at any time.
fn measured<R>(run: impl FnOnce() -> R) -> (R, usize) {
    let before = NBYTES.get();
    NBYTES_MAX.set(before);
    let result = run();
    (result, NBYTES_MAX.get() - before)
}

fn stream(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn feed(stream: &[u8], limits: Limits) -> Result<Vec<Frames>, Error> {
    let mut messages = Vec::new();
    Decoder::new(limits).feed(stream, &mut messages)?;
    Ok(messages)
}

fn names(error: &Error) -> String {
    error.to_string()
}

#[test]
fn absurd_frame_tables_are_refused_by_name() {
    let cases = [
        (stream(&[8, 0]), "number of frames"),
        (stream(&[u64::MAX, u64::MAX]), "number of frames"),
        (stream(&[16, 1, u64::MAX]), "frame length"),
        (stream(&[24, 2, 1 << 36, 1]), "message length"),
        (stream(&[17, 1, 10]), "read hint"),
        (stream(&[0, 1, 10]), "read hint"),
        (stream(&[u64::MAX, 1, 10]), "read hint"),
    ];
    for (stream, field) in cases {
        let (result, nbytes) = measured(|| feed(&stream, Limits::default()));
        assert!(names(&result.unwrap_err()).contains(field), "{field}");
        assert!(nbytes < 300_000, "{field}: {nbytes}");
    }
    let too_long = stream(&[16 + 65_537, 1, 65_537]);
    assert!(feed(&too_long, Limits::HANDSHAKE).is_err());
}

#[test]
fn announced_bytes_cost_a_bounded_amount() {
    // Sixteen million frames are announced, none is there.
    let (result, nbytes) = measured(|| feed(&stream(&[8 + (8 << 24), 1 << 24]), Limits::default()));
    assert_eq!(result, Ok(vec![]));
    assert!(nbytes < 300_000, "{nbytes}");
    // One frame of 60 GiB is announced.
    let announced = stream(&[16, 1, 60 << 30]);
    let (result, nbytes) = measured(|| feed(&announced, Limits::default()));
    assert_eq!(result, Ok(vec![]));
    assert!(nbytes <= ALLOCATION_AHEAD_MAX + 300_000, "{nbytes}");
}

#[test]
fn absurd_counts_in_msgpack_are_refused_before_allocation() {
    let cases: [(&[u8], &str); 8] = [
        (b"\xdd\xff\xff\xff\xff", "frame 0"),
        (b"\xdf\xff\xff\xff\xff\x01", "frame 0"),
        (b"\xc6\xff\xff\xff\xff", "frame 0"),
        (b"\xdb\xff\xff\xff\xffab", "frame 0"),
        (b"\xc9\xff\xff\xff\xff\x01", "frame 0"),
        (b"\x91", "frame 0"),
        (b"\xc1", "0xc1"),
        (b"\xa2\xff\xfe", "UTF-8"),
    ];
    for (bytes, field) in cases {
        let frame = Bytes::from_static(bytes);
        let (result, nbytes) = measured(|| decode(std::slice::from_ref(&frame)));
        assert!(names(&result.unwrap_err()).contains(field));
        assert!(nbytes < 10_000, "{nbytes}");
    }
}

#[test]
fn nested_counts_cannot_multiply() {
    // Each of 500 nested arrays claims all the bytes that follow.
    let mut bytes = Vec::new();
    for level in 0..500_u32 {
        bytes.push(0xdd);
        bytes.extend_from_slice(&(1_000_000 - 5 * (level + 1)).to_be_bytes());
    }
    bytes.resize(1_000_000, 0xc0);
    let frame = Bytes::from(bytes);
    let (result, nbytes) = measured(|| decode(std::slice::from_ref(&frame)));
    assert!(names(&result.unwrap_err()).contains("number of values"));
    assert!(nbytes <= 40 * frame.len() + 10_000, "{nbytes}");
}

#[test]
fn values_cost_at_most_forty_bytes_per_byte() {
    for fill in [0xc0, 0x90, 0x80, 0xa0] {
        let mut bytes = vec![0xdd, 0, 0x0f, 0x42, 0x40];
        bytes.resize(1_000_005, fill);
        let frame = Bytes::from(bytes);
        let (result, nbytes) = measured(|| decode(std::slice::from_ref(&frame)));
        assert_eq!(result.unwrap().as_array().unwrap().len(), 1_000_000);
        assert!(nbytes <= 40 * frame.len() + 10_000, "{nbytes}");
    }
}

#[test]
fn depth_is_limited() {
    for (open, fill) in [(&b"\x91"[..], 0), (b"\x81\x01", 0)] {
        let nested = |levels: usize| {
            let mut bytes = open.repeat(levels);
            bytes.push(fill);
            decode(&[Bytes::from(bytes)])
        };
        assert!(nested(512).is_ok());
        assert!(names(&nested(513).unwrap_err()).contains("nesting depth"));
        assert!(names(&nested(1_000_000).unwrap_err()).contains("nesting depth"));
    }
    let mut deep = b"\x91\x82\xa2op\xa1x\xa1y".to_vec();
    deep.extend(std::iter::repeat_n(0x91, 100_000));
    deep.push(0);
    let deep = [Bytes::from(deep)];
    assert!(names(&decode_worker_batch(&deep).unwrap_err()).contains("nesting depth"));
}

fn message(parts: Value, rest: &[&'static [u8]]) -> Vec<Bytes> {
    let mut frames = encode(&parts);
    frames.extend(rest.iter().map(|frame| Bytes::from_static(frame)));
    frames
}

#[test]
fn offsets_must_be_inside_the_message() {
    const HEADER: &[u8] = b"\x81\xaenum-sub-frames\x01";
    let serialized = |offset: Value| Value::from(map! { "__Serialized__" => offset });
    let pickled = |offset: Value| Value::from(map! { "__Pickled__" => offset });
    let error =
        |value: Value, rest: &[&'static [u8]]| names(&decode(&message(value, rest)).unwrap_err());
    for offset in [0, -1, 2, i64::MAX, i64::MIN] {
        let text = error(serialized(offset.into()), &[HEADER]);
        assert!(text.contains("__Serialized__ refers to frames"), "{text}");
        let text = error(pickled(offset.into()), &[HEADER]);
        assert!(text.contains("__Pickled__ refers to frames"), "{text}");
    }
    assert!(error(serialized(u64::MAX.into()), &[HEADER]).contains("refers to frames"));
    assert!(error(serialized("1".into()), &[HEADER]).contains("expected the index of a frame"));
    assert!(error(serialized(1.into()), &[HEADER]).contains("refers to frames 1..3"));
    assert!(decode(&message(serialized(1.into()), &[HEADER, b"x"])).is_ok());
    let twice = Value::Array(vec![serialized(1.into()), pickled(1.into())]);
    assert!(error(twice, &[HEADER, b"x"]).contains("claims frame 1"));
    let overlap = Value::Array(vec![serialized(1.into()), pickled(2.into())]);
    assert!(error(overlap, &[HEADER, b"\x81\xaenum-sub-frames\x00"]).contains("claims frame 2"));

    let headers: [(&[u8], &str); 6] = [
        (b"\x80", "no field `num-sub-frames`"),
        (b"\x81\xaenum-sub-frames\xff", "num-sub-frames is"),
        (
            b"\x81\xaenum-sub-frames\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
            "refers to frames",
        ),
        (b"\x01", "sub-header is int"),
        (b"", "sub-header is truncated"),
        (b"\x81\x01\x02", "sub-header is int, expected str"),
    ];
    for (header, text) in headers {
        let found = error(serialized(1.into()), &[header]);
        assert!(found.contains(text), "{found}");
    }
    assert!(names(&decode(&[]).unwrap_err()).contains("frame 0"));
    let trailing = decode(&[Bytes::from_static(b"\x01\x02")]);
    assert!(names(&trailing.unwrap_err()).contains("1 unexpected bytes"));
}

#[test]
fn special_maps_must_be_complete() {
    let error = |value: Value| names(&decode(&encode(&value)).unwrap_err());
    assert!(error(map! { "__Set__" => true }.into()).contains("as-list"));
    assert!(error(map! { "__Set__" => true, "as-list" => 1 }.into()).contains("as-list is int"));
    assert!(error(map! { "__Enum__" => true, "name" => "a" }.into()).contains("__module__"));
    let unhashable = Value::Map(oxidask_wire::Map(vec![(map! {}.into(), Value::Nil)]));
    assert!(error(unhashable).contains("map key"));
}

#[test]
fn stream_messages_name_what_is_missing() {
    let worker = |value: Value| names(&decode_worker_batch(&encode(&value)).unwrap_err());
    let client = |value: Value| names(&decode_client_batch(&encode(&value)).unwrap_err());
    assert!(worker(map! { "op" => "task-finished", "key" => "x" }.into()).contains("run_id"));
    assert!(worker(map! { "op" => "task-finished", "run_id" => 1 }.into()).contains("`key`"));
    let wrong = map! { "op" => "task-finished", "key" => "x", "run_id" => "1" };
    assert!(worker(wrong.into()).contains("run_id is str, expected int"));
    assert!(worker(map! { "key" => "x" }.into()).contains("`op`"));
    assert!(worker(map! { "op" => 1 }.into()).contains("op is int"));
    assert!(worker(Value::Array(vec![Value::Int(1)])).contains("expected map"));
    assert!(worker(Value::Int(1)).contains("a batch of messages"));
    assert!(worker(map! { "op" => "add-keys", "keys" => map! {} }.into()).contains("keys is map"));
    assert!(client(map! { "op" => "update-graph" }.into()).contains("expr_ser"));
    let wrong = map! { "op" => "update-graph", "expr_ser" => 1 };
    assert!(client(wrong.into()).contains("expr_ser is int"));
    assert!(client(map! { "op" => "client-desires-keys" }.into()).contains("`keys`"));
    let nil_key = map! { "op" => "client-desires-keys", "keys" => vec![Value::Nil] };
    assert!(client(nil_key.into()).contains("key is nil"));
}

#[test]
fn stream_messages_tolerate_what_stock_sends() {
    use oxidask_wire::stream::{ClientMessage, WorkerMessage};
    // The operation may be anywhere, unknown fields are ignored, "OK" ends a batch.
    let batch = Value::Array(vec![
        map! { "keys" => Value::Set(vec!["x".into()]), "extra" => map! { "a" => 1 }, "op" => "client-desires-keys" }.into(),
        map! { "op" => "heartbeat-client", "x" => vec![Value::Nil] }.into(),
        map! { "op" => "unheard-of", "a" => 1, "b" => Serialized::of_bytes(Bytes::from_static(b"x")) }.into(),
        "OK".into(),
        Value::Int(3),
    ]);
    let decoded = decode_client_batch(&encode(&batch)).unwrap();
    let [
        ClientMessage::ClientDesiresKeys { keys, client: None },
        ClientMessage::HeartbeatClient,
        ClientMessage::Other { op, fields },
    ] = decoded.as_slice()
    else {
        panic!("{decoded:?}");
    };
    assert_eq!(*keys, [oxidask_wire::Key::from("x")]);
    assert_eq!(*op, "unheard-of");
    assert_eq!(fields.len(), 2);
    assert_eq!(decode_client_batch(&encode(&"OK".into())).unwrap(), []);
    let bare = map! { "op" => "long-running", "key" => 1, "run_id" => 3, "compute_duration" => Value::Nil, "stimulus_id" => "s" };
    let decoded = decode_worker_batch(&encode(&bare.into())).unwrap();
    assert!(matches!(
        decoded.as_slice(),
        [WorkerMessage::LongRunning {
            run_id: 3,
            compute_duration: None,
            ..
        }]
    ));
}

#[test]
fn compressed_bombs_stop_at_the_limit() {
    const LIMIT: usize = 1 << 20;
    let zeros = vec![0; 64 << 20];
    for compression in Compression::ALL {
        let bomb = compression.compress(&zeros).unwrap();
        let (result, nbytes) = measured(|| compression.decompress(&bomb, LIMIT));
        assert!(names(&result.unwrap_err()).contains("uncompressed frame length"));
        // zstd's own window and zlib's tables come on top.
        assert!(nbytes < 3 * LIMIT, "{compression:?}: {nbytes}");
    }
    // A size that the data cannot fill is not allocated.
    let lies = [
        (Compression::Lz4, &b"\xff\xff\xff\x7f\x00"[..]),
        (Compression::Snappy, b"\xff\xff\xff\xff\x07\x00"),
    ];
    for (compression, lie) in lies {
        let (result, nbytes) = measured(|| compression.decompress(lie, usize::MAX));
        assert!(result.is_err());
        assert!(nbytes < 10_000, "{compression:?}: {nbytes}");
    }
}

#[test]
fn split_offsets_must_fit() {
    let value = |header: oxidask_wire::Map| Serialized {
        header: encode(&header.into())[0].clone(),
        frames: [Bytes::from_static(b"ab"), Bytes::from_static(b"cd")]
            .into_iter()
            .collect(),
    };
    let ints = |values: &[u64]| values.iter().map(|&v| Value::from(v)).collect::<Value>();
    let split = |counts: &[u64], offsets: &[u64]| {
        value(map! { "split-num-sub-frames" => ints(counts), "split-offsets" => ints(offsets) })
            .logical_frames(100)
    };
    assert_eq!(split(&[2], &[0]).unwrap(), ["abcd"]);
    assert_eq!(split(&[1, 1], &[1, 0]).unwrap(), ["cd", "ab"]);
    assert!(split(&[3], &[0]).is_err());
    assert!(split(&[1], &[u64::MAX]).is_err());
    assert!(split(&[u64::MAX], &[1]).is_err());
    assert!(split(&[1], &[0, 1]).is_err());
    // Shards used again and again add up.
    assert!(split(&[2; 26], &[0; 26]).is_err());
    let names = value(map! { "compression" => vec![Value::from("lz5"), Value::Nil] });
    assert!(matches!(
        names.logical_frames(100),
        Err(Error::UnknownCompression { .. })
    ));
    let names = value(map! { "compression" => vec![Value::Nil] });
    assert!(names.logical_frames(100).is_err());
}

#[test]
fn pickles_that_do_more_than_hold_data_are_refused() {
    let refused: [&[u8]; 12] = [
        b"",
        b".",
        b"\x80\x05cos\nsystem\n.",
        b"\x80\x05\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x05N)R.",
        b"\x80\x05(.",
        b"\x80\x05NN.",
        b"\x80\x05t.",
        b"\x80\x05h\x00.",
        b"\x80\x05Nr\xff\xff\xff\xff.",
        b"\x80\x05X\xff\xff\xff\xffab.",
        b"\x80\x05\x97.",
    ];
    for pickle in refused {
        assert_eq!(read_plain(pickle), Err(NotPlain), "{pickle:x?}");
    }
    let mut deep = b"\x80\x05".to_vec();
    deep.extend(std::iter::repeat_n(b']', 100_000));
    deep.extend(std::iter::repeat_n(b'a', 99_999));
    deep.push(b'.');
    assert_eq!(read_plain(&deep), Err(NotPlain));
    // A tuple of two references to the one before, again and again.
    let mut laughs = b"\x80\x05N\x85\x94".to_vec();
    for index in 0..60 {
        laughs.extend_from_slice(&[b'h', index, b'h', index, 0x86, 0x94]);
    }
    laughs.push(b'.');
    assert_eq!(read_plain(&laughs), Err(NotPlain));
}

#[test]
fn writers_use_the_shortest_encodings() {
    let mut writer = Writer::new();
    for value in [
        0, 127, 128, 255, 256, 65_535, 65_536, -32, -33, -128, -129, -32_768, -32_769,
    ] {
        writer.int(value);
    }
    let expected = b"\x00\x7f\xcc\x80\xcc\xff\xcd\x01\x00\xcd\xff\xff\xce\0\x01\0\0\
        \xe0\xd0\xdf\xd0\x80\xd1\xff\x7f\xd1\x80\0\xd2\xff\xff\x7f\xff";
    assert_eq!(writer.as_slice(), expected);
}
