//! Memory that several threads write disjoint parts of.

use std::cell::UnsafeCell;
use std::ops::Range;

use memmap2::{MmapMut, MmapOptions};

/// Values of which the members of a team write disjoint ranges, between two barriers, and read what others wrote after.
///
/// The rules are those of a slice cut into pieces; that the pieces are disjoint is the callers' promise.
pub struct Canvas<T> {
    cells: Box<[UnsafeCell<T>]>,
}

// SAFETY: shared access is by unsafe methods only, whose callers promise that nobody reads what another writes.
unsafe impl<T: Send + Sync> Sync for Canvas<T> {}

impl<T> Default for Canvas<T> {
    fn default() -> Self {
        Self { cells: Box::default() }
    }
}

impl<T> Canvas<T> {
    /// Grows it to `len` values. What was there may be gone.
    pub fn grow(&mut self, len: usize)
    where
        T: Default,
    {
        if self.cells.len() < len {
            self.cells = (0..len).map(|_| UnsafeCell::new(T::default())).collect();
        }
    }

    /// Values there are.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// All of them, by who has it alone.
    pub fn whole(&mut self) -> &mut [T] {
        let len = self.cells.len();
        // SAFETY: `&mut self` is the only access; a cell has the layout of what is in it.
        unsafe { std::slice::from_raw_parts_mut(self.cells.as_mut_ptr().cast(), len) }
    }

    /// Reads a range.
    ///
    /// # Safety
    /// Nobody writes in the range as long as the slice lives.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        let cells = &self.cells[range];
        // SAFETY: the range lies inside; that nobody writes is the caller's promise.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Writes a range.
    ///
    /// # Safety
    /// Nobody else reads or writes in the range as long as the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.cells[range];
        // SAFETY: the range lies inside, the cells may be written through a shared reference, and the rest is the caller's
        // promise.
        unsafe { std::slice::from_raw_parts_mut(cells.as_ptr().cast::<T>().cast_mut(), cells.len()) }
    }

    /// Where it begins; for reading.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.cells.as_ptr().cast()
    }
}

/// Where a product puts its rows: `[row][stride]` floats, from a column on.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    floats: *mut f32,
    len: usize,
    stride: usize,
    column: usize,
    lives: std::marker::PhantomData<&'a f32>,
}

// SAFETY: what may be written through it is a promise of who calls `multiply_groups`.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Rows of `stride` floats in `floats`, written from `column` on.
    pub fn new(floats: &'a mut [f32], stride: usize, column: usize) -> Self {
        let (floats, len) = (floats.as_mut_ptr(), floats.len());
        Self { floats, len, stride, column, lives: std::marker::PhantomData }
    }

    /// The same in a canvas.
    pub fn on(canvas: &'a Canvas<f32>, stride: usize, column: usize) -> Self {
        let (floats, len) = (canvas.as_ptr().cast_mut(), canvas.len());
        Self { floats, len, stride, column, lives: std::marker::PhantomData }
    }

    /// Whether `rows` rows of `columns` columns lie inside.
    pub(crate) fn holds(&self, rows: usize, columns: usize) -> bool {
        self.column + columns <= self.stride && rows * self.stride <= self.len
    }

    /// Where `column` of `row` lies.
    ///
    /// # Safety
    /// `holds` said yes to the place.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: the place lies inside, by the caller's promise.
        unsafe { self.floats.add(row * self.stride + self.column + column) }
    }

    /// Writes `values` at `column` of `row`.
    ///
    /// # Safety
    /// `holds` said yes to the place; nobody else uses it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn put(&self, row: usize, column: usize, values: &[f32]) {
        debug_assert!(row * self.stride + self.column + column + values.len() <= self.len);
        // SAFETY: the place lies inside, by the caller's promise.
        unsafe {
            let to = self.floats.add(row * self.stride + self.column + column);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
    }
}

/// Blocks of KV memory.
///
/// `[block][layer][key or value][kv head][64 × head width]` halves; inside of a head's share keys lie as
/// `[position / 8][element][position % 8]`, so that a register holds one element of eight keys, and values as
/// `[position][element]`. The memory comes zeroed from the system and takes room once it is written.
pub struct Arena {
    map: MmapMut,
    blocks: usize,
    layers: usize,
    heads: usize,
    width: usize,
}

/// Positions of a block.
pub const POSITIONS: usize = thalweg_protocol::limits::KV_BLOCK_TOKENS;
/// Positions whose keys are interleaved.
pub(crate) const KEYS: usize = 8;
const _: () = assert!(POSITIONS.is_multiple_of(2 * KEYS), "the kernels walk pairs of eight positions");

/// Which part of a head's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its keys.
    Keys,
    /// Its values.
    Values,
}

impl Arena {
    /// Room for `blocks` blocks of a model with so many layers, kv heads and elements of a head.
    pub fn new(blocks: usize, layers: usize, heads: usize, width: usize) -> std::io::Result<Self> {
        assert!(width.is_multiple_of(8), "a head has a multiple of 8 elements");
        let bytes = blocks * layers * 2 * heads * width * POSITIONS * size_of::<u16>();
        let map = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon()?;
        Ok(Self { map, blocks, layers, heads, width })
    }

    /// Blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Elements of a head.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where a head's keys or values of a block begin.
    fn at(&self, block: u32, layer: usize, side: Side, head: usize) -> *mut u16 {
        let block = block as usize;
        assert!(block < self.blocks && layer < self.layers && head < self.heads, "block {block} exists");
        let side = usize::from(side == Side::Values);
        let share = ((block * self.layers + layer) * 2 + side) * self.heads + head;
        // SAFETY: the share lies inside of the map, by the check above. A mapping is aligned to a page.
        unsafe { self.map.as_ptr().cast_mut().cast::<u16>().add(share * POSITIONS * self.width) }
    }

    /// The keys or values of a head in a block.
    ///
    /// # Safety
    /// Nobody writes them as long as the slice lives.
    pub unsafe fn read(&self, block: u32, layer: usize, side: Side, head: usize) -> &[u16] {
        // SAFETY: a share has so many halves; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at(block, layer, side, head), POSITIONS * self.width) }
    }

    /// Puts key and value of a head at `position` (below [`POSITIONS`]) of a block.
    ///
    /// # Safety
    /// Nobody else reads or writes this position of this head meanwhile.
    pub unsafe fn put(&self, block: u32, layer: usize, head: usize, position: usize, key: &[u16], value: &[u16]) {
        assert!(position < POSITIONS && key.len() == self.width && value.len() == self.width, "a position of a block");
        let keys = self.at(block, layer, Side::Keys, head);
        let values = self.at(block, layer, Side::Values, head);
        // SAFETY: both places lie inside of the share, by the check above. Element by element, because neighbouring
        // positions interleave and may be written by others.
        unsafe {
            let keys = keys.add(position / KEYS * KEYS * self.width + position % KEYS);
            for (element, &half) in key.iter().enumerate() {
                keys.add(element * KEYS).write(half);
            }
            std::ptr::copy_nonoverlapping(value.as_ptr(), values.add(position * self.width), self.width);
        }
    }

    /// Copies the first `tokens` positions of one layer from a block to another.
    ///
    /// # Safety
    /// Nobody else writes the one or uses the other meanwhile.
    pub unsafe fn copy(&self, from: u32, to: u32, layer: usize, tokens: usize) {
        assert!(tokens <= POSITIONS && from != to, "{tokens} tokens from block {from} to {to}");
        for head in 0..self.heads {
            for (side, tokens) in [(Side::Keys, tokens.next_multiple_of(KEYS)), (Side::Values, tokens)] {
                let (from, to) = (self.at(from, layer, side, head), self.at(to, layer, side, head));
                // SAFETY: both shares have at least so many halves, and are not the same.
                unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), to, tokens * self.width) };
            }
        }
    }
}
