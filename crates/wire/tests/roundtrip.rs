//! Properties of encoding and framing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{BufMut, Bytes};
use oxidask_wire::compression::Compression;
use oxidask_wire::frame::{Decoder, Limits, prelude, to_stream};
use oxidask_wire::pickle::read_plain;
use oxidask_wire::{BatchWriter, Enum, Frames, Map, Pickled, Serialized, Value, decode, encode};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn hashable() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        "[a-z_]{0,12}".prop_map(Value::from),
        any::<i64>().prop_map(Value::Int),
        any::<f64>()
            .prop_filter("nan", |f| !f.is_nan())
            .prop_map(Value::Float),
        bytes(20).prop_map(Value::Bin),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| vec(inner, 0..3).prop_map(Value::Array))
}

fn serialized() -> impl Strategy<Value = Value> {
    vec(bytes(50), 0..4).prop_map(|frames| {
        let header = Value::from(oxidask_wire::map! {
            "serializer" => "pickle",
            "num-sub-frames" => frames.len(),
        });
        Value::from(Serialized {
            header: encode(&header)[0].clone(),
            frames: frames.into_iter().collect(),
        })
    })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<u64>().prop_map(Value::from),
        hashable(),
        any::<String>().prop_map(Value::from),
        serialized(),
        (bytes(40), vec(bytes(50), 0..3))
            .prop_map(|(pickle, buffers)| Value::from(Pickled::with_buffers(&pickle, buffers))),
        "[a-z]{1,8}".prop_map(|name| Value::from(Enum {
            name: name.into(),
            module: "distributed.core".into(),
            class: "Status".into(),
        })),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..20).prop_map(Value::Array),
            vec(hashable(), 0..5).prop_map(Value::Set),
            vec((hashable(), inner), 0..20).prop_map(|pairs| Value::Map(Map(pairs))),
        ]
    })
}

fn frames() -> impl Strategy<Value = Frames> {
    let frame = prop_oneof![
        4 => bytes(300),
        1 => Just(Bytes::new()),
        // Around the size from which frames have buffers of their own.
        1 => (60_000_usize..200_000, any::<u8>()).prop_map(|(n, byte)| Bytes::from(vec![byte; n])),
    ];
    vec(frame, 1..8)
}

fn feed_in_pieces(stream: &[u8], pieces: &[usize]) -> Vec<Frames> {
    let mut decoder = Decoder::new(Limits::default());
    let mut messages = Vec::new();
    let mut rest = stream;
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() {
        let count = (*pieces.next().unwrap()).min(rest.len());
        decoder.feed(&rest[..count], &mut messages).unwrap();
        rest = &rest[count..];
    }
    assert!(decoder.is_idle());
    messages
}

proptest! {
    #[test]
    fn values_survive(value in value()) {
        prop_assert_eq!(decode(&encode(&value)).unwrap(), value.clone());
        prop_assert_eq!(value.detached(), value);
    }

    #[test]
    fn batches_number_their_payloads_together(values in vec(value(), 0..6)) {
        let mut batch = BatchWriter::new();
        prop_assert!(batch.take().is_none());
        for value in &values {
            batch.push(value);
        }
        prop_assert_eq!(batch.len(), values.len());
        let nbytes = batch.nbytes();
        let frames = batch.finish();
        prop_assert_eq!(frames.iter().map(Bytes::len).sum::<usize>(), nbytes);
        prop_assert_eq!(decode(&frames).unwrap(), Value::Array(values));
    }

    #[test]
    fn messages_survive_any_cut_of_the_stream(
        messages in vec(frames(), 1..4),
        pieces in vec(1_usize..70_000, 1..5),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| to_stream(m)).collect();
        prop_assert_eq!(feed_in_pieces(&stream, &pieces), messages);
    }

    #[test]
    fn the_read_hint_may_end_after_any_frame(frames in vec(bytes(300), 1..6)) {
        let stream = to_stream(&frames);
        let mut boundary = 8 + 8 * frames.len() as u64;
        let ends = frames.iter().map(|frame| frame.len() as u64);
        for end in std::iter::once(0).chain(ends) {
            boundary += end;
            let mut stream = stream.to_vec();
            stream[..8].copy_from_slice(&boundary.to_le_bytes());
            prop_assert_eq!(&feed_in_pieces(&stream, &[1]), std::slice::from_ref(&frames));
        }
    }

    #[test]
    fn our_read_hint_ends_after_a_frame(frames in frames()) {
        let head = prelude(&frames);
        let hint = u64::from_le_bytes(head[..8].try_into().unwrap());
        let mut boundary = 8 + 8 * frames.len() as u64;
        let mut boundaries = vec![boundary];
        for frame in &frames {
            boundary += frame.len() as u64;
            boundaries.push(boundary);
        }
        prop_assert!(boundaries.contains(&hint));
    }

    #[test]
    fn compression_restores(data in bytes(5000), repeat in 1_usize..20) {
        let data = data.repeat(repeat);
        for compression in Compression::ALL {
            let compressed = compression.compress(&data).unwrap();
            prop_assert_eq!(&compression.decompress(&compressed, data.len()).unwrap()[..], &data[..]);
            if !data.is_empty() {
                prop_assert!(compression.decompress(&compressed, data.len() - 1).is_err());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in vec(any::<u8>(), 0..200)) {
        let data = Bytes::from(data);
        let _ = decode(&[data.clone(), data.clone()]);
        let _ = oxidask_wire::stream::decode_client_batch(std::slice::from_ref(&data));
        let _ = oxidask_wire::stream::decode_worker_batch(std::slice::from_ref(&data));
        let _ = oxidask_wire::handshake::Handshake::decode(std::slice::from_ref(&data));
        let _ = read_plain(&data);
        for compression in Compression::ALL {
            let _ = compression.decompress(&data, 10_000);
        }
        let _ = Decoder::new(Limits::HANDSHAKE).feed(&data, &mut Vec::new());
    }

    #[test]
    fn damaged_messages_never_panic(
        value in value(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut frames = encode(&value);
        let mut first = frames[0].to_vec();
        for (index, byte) in damage {
            let index = index.index(first.len());
            first[index] = byte;
        }
        frames[0] = Bytes::from(first);
        if let Ok(value) = decode(&frames) {
            let _ = decode(&encode(&value));
        }
    }

    #[test]
    fn truncated_messages_are_errors(value in value(), cut in any::<proptest::sample::Index>()) {
        let mut frames = encode(&value);
        let keep = cut.index(frames[0].len());
        frames[0].truncate(keep);
        prop_assert!(decode(&frames).is_err());
    }
}

#[test]
fn a_stream_in_single_bytes() {
    let frames: Frames = vec![
        Bytes::from_static(b"abc"),
        Bytes::new(),
        Bytes::from(vec![7; 70_000]),
    ];
    let stream = to_stream(&frames);
    assert_eq!(feed_in_pieces(&stream, &[1]), [frames]);
}

#[test]
fn later_large_frames_are_left_out_of_the_read_hint() {
    let large = Bytes::from(vec![0; 1 << 20]);
    let small = Bytes::from(vec![0; 100]);
    let hint = |frames: &[Bytes]| u64::from_le_bytes(prelude(frames)[..8].try_into().unwrap());
    let table = |frames: &[Bytes]| 8 + 8 * frames.len() as u64;
    let frames = [small.clone(), large.clone(), small.clone(), large.clone()];
    assert_eq!(hint(&frames), table(&frames) + 100 + (1 << 20) + 100);
    let pickled = Bytes::from(vec![0; 60_000]);
    let frames = [small, pickled, large];
    assert_eq!(hint(&frames), table(&frames) + 60_100);
}

#[test]
fn a_decoder_reads_large_frames_in_place() {
    let payload = Bytes::from(vec![3; 1 << 20]);
    let stream = to_stream(&[Bytes::from_static(b"\xc0"), payload.clone()]);
    let mut decoder = Decoder::new(Limits::default());
    let mut out = Vec::new();
    decoder.feed(&stream[..100], &mut out).unwrap();
    let address = decoder.buffer().get_ref().as_ptr();
    decoder.feed(&stream[100..], &mut out).unwrap();
    assert_eq!(out[0][1], payload);
    assert_eq!(out[0][1].as_ptr(), address);
    assert!(decoder.buffer().has_remaining_mut());
}

#[test]
fn compressed_values_hold_the_same_frames() {
    let text = Bytes::from(b"abc".repeat(10_000));
    let noise = (1..30_000_u64).map(|n| {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 33) as u8
    });
    let noise: Vec<u8> = noise.collect();
    let frames = [Bytes::from_static(b"short"), text, Bytes::from(noise)];
    let header = oxidask_wire::map! { "serializer" => "pickle", "writeable" => Vec::new() };
    let value = Serialized {
        header: encode(&Value::Map(header)).swap_remove(0),
        frames: frames.iter().cloned().collect(),
    };
    for compression in Compression::ALL {
        let compressed = value.compressed(compression).unwrap().unwrap();
        let names = compressed.header_map().unwrap().take("compression");
        let expected = [Value::Nil, compression.name().into(), Value::Nil];
        assert_eq!(names, Some(Value::Array(expected.to_vec())));
        assert_eq!(compressed.logical_frames(1 << 20).unwrap(), frames);
        // What is compressed stays as it is.
        assert_eq!(compressed.compressed(Compression::Zlib).unwrap(), None);
    }
    let short = Serialized::of_bytes(Bytes::from_static(b"short"));
    assert_eq!(short.compressed(Compression::Lz4).unwrap(), None);
    let wrong = oxidask_wire::map! { "compression" => Vec::new() };
    let wrong = Serialized {
        header: encode(&Value::Map(wrong)).swap_remove(0),
        ..value
    };
    assert!(wrong.compressed(Compression::Lz4).is_err());
}

/// Only the frame itself keeps what it stands for, so that no copy may take its place.
#[test]
fn a_reference_keeps_its_frame() {
    let frame = Bytes::from(vec![1; 8]);
    let reference = Value::from(Serialized::reference(frame.clone()));
    let message = oxidask_wire::map! { "data" => reference };
    let decoded = decode(&encode(&Value::Map(message))).unwrap();
    let mut decoded = decoded.detached().into_map().unwrap();
    let decoded = decoded.take("data").unwrap();
    let Value::Serialized(decoded) = decoded else {
        panic!("expected a serialised value, got {decoded:?}");
    };
    let kept = decoded.as_reference().unwrap();
    assert_eq!(kept.as_ptr(), frame.as_ptr());
    assert_eq!(decoded.serializer().unwrap().unwrap(), "reference");
    let copied = Serialized::of_bytes(frame);
    assert_eq!(copied.as_reference(), None);
}
