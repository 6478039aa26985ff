//! Arrays whose items are not in one piece, serialised without the interpreter.

use bytes::Bytes;
use oxidask_server::worker::Encode;
use oxidask_wire::Serialized;
use smallvec::smallvec;

use super::held::HeldStrides;

/// An array that is a view of another one, such as a block cut out of it.
///
/// It is copied when somebody asks for it, and for each who does: what is cut out and
/// never sent costs nothing.
#[derive(Debug)]
pub(crate) struct StridedArray {
    /// The sub-header of a copy in C order.
    header: Bytes,
    items: HeldStrides,
}

impl StridedArray {
    /// `header` is that of an array of the same type and shape in C order.
    pub(crate) fn new(header: Bytes, items: HeldStrides) -> Self {
        Self { header, items }
    }
}

impl Encode for StridedArray {
    fn nbytes(&self) -> usize {
        self.items.nbytes()
    }

    fn encode(&self) -> Serialized {
        Serialized {
            header: self.header.clone(),
            frames: smallvec![self.items.to_bytes()],
        }
    }
}

/// Where the items of an array are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout<'a> {
    /// Items by dimension.
    pub(crate) shape: &'a [usize],
    /// Bytes from one item to the next, by dimension.
    pub(crate) strides: &'a [isize],
    /// Bytes of an item.
    pub(crate) item_nbytes: usize,
}

impl Layout<'_> {
    /// Copies all items in C order.
    ///
    /// # Safety
    /// From `first` on, every item that shape and strides name must be readable.
    #[expect(unsafe_code, reason = "the items are reached by pointers")]
    pub(crate) unsafe fn copy_from(&self, first: *const u8) -> Vec<u8> {
        let nbytes = self.shape.iter().product::<usize>() * self.item_nbytes;
        let mut target = Vec::with_capacity(nbytes);
        if nbytes == 0 {
            return target;
        }
        // The last dimensions may be in one piece.
        let mut piece = self.item_nbytes;
        let mut outer = self.shape.len();
        while outer > 0
            && (self.shape[outer - 1] == 1 || self.strides[outer - 1] == piece.cast_signed())
        {
            piece *= self.shape[outer - 1];
            outer -= 1;
        }
        let (count, stride) = match outer {
            0 => (1, 0),
            _ => (self.shape[outer - 1], self.strides[outer - 1]),
        };
        let rows = outer.saturating_sub(1);
        let mut at = vec![0_usize; rows];
        loop {
            let offsets = at
                .iter()
                .zip(self.strides)
                .map(|(at, stride)| at.cast_signed() * stride);
            // SAFETY: the offset is that of an item, which the caller vouches for, and
            // so are the `count` pieces from there.
            unsafe {
                let row = first.offset(offsets.sum());
                copy_row(row, count, stride, piece, &mut target);
            }
            let Some(dimension) = (0..rows).rev().find(|&dim| at[dim] + 1 < self.shape[dim]) else {
                return target;
            };
            at[dimension] += 1;
            at[dimension + 1..].fill(0);
        }
    }
}

/// Appends `count` pieces that are `stride` bytes apart.
///
/// # Safety
/// They must be readable.
#[expect(unsafe_code, reason = "the items are reached by pointers")]
unsafe fn copy_row(
    row: *const u8,
    count: usize,
    stride: isize,
    piece: usize,
    target: &mut Vec<u8>,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        match piece {
            1 => copy_items::<1>(row, count, stride, target),
            2 => copy_items::<2>(row, count, stride, target),
            4 => copy_items::<4>(row, count, stride, target),
            8 => copy_items::<8>(row, count, stride, target),
            16 => copy_items::<16>(row, count, stride, target),
            _ => {
                for at in 0..count.cast_signed() {
                    let piece = std::slice::from_raw_parts(row.offset(at * stride), piece);
                    target.extend_from_slice(piece);
                }
            }
        }
    }
}

/// As [`copy_row`], for pieces of a size that the compiler knows.
///
/// # Safety
/// They must be readable.
#[expect(unsafe_code, reason = "the items are reached by pointers")]
unsafe fn copy_items<const N: usize>(
    row: *const u8,
    count: usize,
    stride: isize,
    target: &mut Vec<u8>,
) {
    let begin = target.len();
    target.resize(begin + count * N, 0);
    let (pieces, _) = target[begin..].as_chunks_mut::<N>();
    let mut at = 0;
    for piece in pieces {
        // SAFETY: as the caller vouches; bytes need no alignment.
        *piece = unsafe { row.offset(at).cast::<[u8; N]>().read() };
        at += stride;
    }
}
