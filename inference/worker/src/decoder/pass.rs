//! The forward pass of decoders: over packed rows of any sequences at any positions, by a team.
//!
//! A row is (part, position, token). Prefill of a chunk is many rows of one sequence, decoding is one row of each of many;
//! both are the same pass. Norms, matrix products and the feed-forward part see rows only; attention alone knows that rows
//! belong to sequences, and finds their keys and values through tables of blocks.
//!
//! Every phase is shared out over the team: products by outputs, attention by sequence, head and tile of queries, the rest
//! by rows. A number is computed by one member, in the same order whoever it is, so the size of the team changes no bit.

use std::ops::Range;
use std::sync::Arc;

use thalweg_scheduler::Step;

use super::{Decoder, Dimensions, Layer, Rope};
use crate::kernel::attention::{self, Head, POSITIONS, Queries};
use crate::kernel::canvas::{Arena, Canvas, Output};
use crate::kernel::pack::Packed;
use crate::kernel::{Activations, BLOCK, vector};
use crate::model::Runner;
use crate::team::{Member, Team};

/// Query vectors that attend together, so that keys and values are read and converted once for all of them: as many as
/// leave room in the second-level cache for themselves, their scores and their outputs.
const QUERIES_TOGETHER: usize = 96;
/// Columns of the feed-forward part that are computed before its activation is applied to them: they stay in the cache.
const HIDDEN_TOGETHER: usize = 8 * BLOCK;

/// Rows between the phases of a step, each `[row][element]`, and the KV memory.
struct Memory {
    arena: Arena,
    residual: Canvas<f32>,
    /// Queries, keys and values of a row side by side.
    qkv: Canvas<f32>,
    projected: Canvas<f32>,
    gate: Canvas<f32>,
    up: Canvas<f32>,
    cosines: Canvas<f32>,
    sines: Canvas<f32>,
    logits: Canvas<f32>,
    normed: Activations,
    attended: Activations,
    hidden: Activations,
    /// Of the rows that want logits.
    drawn: Activations,
    /// One for each member.
    locals: Canvas<Local>,
}

/// What a member needs for itself.
#[derive(Default)]
struct Local {
    row: Vec<f32>,
    key: Vec<u16>,
    value: Vec<u16>,
    queries: Queries,
}

impl Memory {
    fn new(arena: Arena) -> Self {
        Self {
            arena,
            residual: Canvas::default(),
            qkv: Canvas::default(),
            projected: Canvas::default(),
            gate: Canvas::default(),
            up: Canvas::default(),
            cosines: Canvas::default(),
            sines: Canvas::default(),
            logits: Canvas::default(),
            normed: Activations::default(),
            attended: Activations::default(),
            hidden: Activations::default(),
            drawn: Activations::default(),
            locals: Canvas::default(),
        }
    }

    /// Makes room for a step.
    fn reset(&mut self, d: &Dimensions, rows: usize, wanted: usize) {
        for (canvas, width) in [
            (&mut self.residual, d.width),
            (&mut self.qkv, d.qkv_width()),
            (&mut self.projected, d.width),
            (&mut self.gate, d.hidden),
            (&mut self.up, d.hidden),
            (&mut self.cosines, d.head_width / 2),
            (&mut self.sines, d.head_width / 2),
        ] {
            canvas.grow(rows * width);
        }
        self.logits.grow(wanted * d.vocabulary);
        self.normed.reset(rows, d.width);
        self.attended.reset(rows, d.query_width());
        self.hidden.reset(rows, d.hidden);
        self.drawn.reset(wanted, d.width);
    }
}

/// Consecutive rows of one part whose queries attend together.
struct Tile {
    part: usize,
    rows: Range<usize>,
}

/// A decoder, its KV memory, and its scratch memory.
pub(super) struct DecoderRunner {
    model: Arc<Decoder>,
    team: Arc<Team>,
    memory: Memory,
    tiles: Vec<Tile>,
    /// Rows that want logits.
    wanted: Vec<usize>,
}

impl DecoderRunner {
    /// See [`Model::runner`](crate::model::Model::runner).
    pub(super) fn new(model: Arc<Decoder>, blocks: usize, rows: usize, team: Arc<Team>) -> Self {
        let d = &model.dimensions;
        let arena = Arena::new(blocks, d.layers, d.kv_heads, d.head_width);
        let mut memory = Memory::new(arena.expect("the system has addresses for the KV memory"));
        let quants_only = !model.matrices().any(|matrix| matrix.format().is_float());
        for rows in [&mut memory.normed, &mut memory.attended, &mut memory.hidden, &mut memory.drawn] {
            rows.quants_only(quants_only);
        }
        memory.reset(d, rows, 0);
        memory.locals.grow(team.count());
        Self { model, team, memory, tiles: Vec::new(), wanted: Vec::new() }
    }
}

impl Runner for DecoderRunner {
    fn step(&mut self, step: &Step) {
        let Self { model, team, memory, tiles, wanted } = self;
        let d = &model.dimensions;
        wanted.clear();
        wanted.extend((0..step.rows.len()).filter(|&n| step.rows[n].wants_logits));
        memory.reset(d, step.rows.len(), wanted.len());
        cut(tiles, step, (QUERIES_TOGETHER / (d.heads / d.kv_heads)).max(1));
        for row in &step.rows {
            assert!((row.token as usize) < d.vocabulary, "token {} is one of {}", row.token, d.vocabulary);
            let blocks = step.parts[row.part as usize].blocks;
            assert!((row.position as usize) < blocks * POSITIONS, "the table reaches position {}", row.position);
        }
        let pass = Pass { model, d, step, tiles, wanted, memory };
        team.run(|member| pass.run(member));
    }

    fn logits(&self) -> &[f32] {
        // SAFETY: the team writes during `step` only, which has `&mut self`.
        unsafe { self.memory.logits.read(0..self.wanted.len() * self.model.dimensions.vocabulary) }
    }
}

/// Cuts the parts of a step into tiles of up to `rows` rows; those that take longest, which are the last of long prompts,
/// come first.
fn cut(tiles: &mut Vec<Tile>, step: &Step, rows: usize) {
    tiles.clear();
    for (part, p) in step.parts.iter().enumerate() {
        let end = p.first + p.count;
        tiles.extend((p.first..end).step_by(rows).map(|first| Tile { part, rows: first..end.min(first + rows) }));
    }
    tiles.reverse();
}

/// One step, as all members see it.
///
/// The one rule that makes the unsafe accesses sound: between two barriers, a value is written by the member alone that took
/// the piece it belongs to, and read by that member or not at all; values that are read by all were written before a barrier.
struct Pass<'a> {
    model: &'a Decoder,
    d: &'a Dimensions,
    step: &'a Step,
    tiles: &'a [Tile],
    wanted: &'a [usize],
    memory: &'a Memory,
}

impl Pass<'_> {
    fn run(&self, member: Member<'_>) {
        // SAFETY: the member's own.
        let local = unsafe { &mut self.memory.locals.write(member.index()..member.index() + 1)[0] };
        let rows = self.step.rows.len();
        self.copy(member);
        self.embed(member);
        for (n, layer) in self.model.layers.iter().enumerate() {
            member.barrier();
            self.norm(member, local, &layer.attention_norm, rows, |row| row, &self.memory.normed);
            member.barrier();
            self.queries_keys_values(member, layer);
            member.barrier();
            member.each(rows, member.piece(rows, 1), |rows| rows.for_each(|row| self.keep(layer, n, row, local)));
            member.barrier();
            self.attend(member, n, local);
            member.barrier();
            self.project(member, &layer.attention_output, &self.memory.attended);
            member.barrier();
            self.norm(member, local, &layer.feed_norm, rows, |row| row, &self.memory.normed);
            member.barrier();
            self.feed_forward(member, layer, local);
            member.barrier();
            self.project(member, &layer.down, &self.memory.hidden);
        }
        member.barrier();
        let wanted = |n: usize| self.wanted[n];
        self.norm(member, local, &self.model.output_norm, self.wanted.len(), wanted, &self.memory.drawn);
        member.barrier();
        self.draw_from(member);
    }

    /// Copies the blocks that are to be.
    fn copy(&self, member: Member<'_>) {
        let copies = &self.step.copies;
        if copies.is_empty() {
            return;
        }
        member.each(copies.len() * self.d.layers, self.d.layers, |range| {
            for n in range {
                let (copy, layer) = (&copies[n / self.d.layers], n % self.d.layers);
                // SAFETY: no copy or row writes the source, none but this one the target; rows use it after a barrier.
                unsafe { self.memory.arena.copy(copy.from, copy.to, layer, copy.tokens as usize) };
            }
        });
        member.barrier();
    }

    /// Looks up the embeddings, and the angles of each row's position.
    fn embed(&self, member: Member<'_>) {
        let (width, pairs) = (self.d.width, self.d.head_width / 2);
        let rows = self.step.rows.len();
        member.each(rows, member.piece(rows, 1), |range| {
            for n in range {
                let row = &self.step.rows[n];
                // SAFETY: rows of this member.
                let (residual, cosines, sines) = unsafe {
                    (
                        self.memory.residual.write(n * width..(n + 1) * width),
                        self.memory.cosines.write(n * pairs..(n + 1) * pairs),
                        self.memory.sines.write(n * pairs..(n + 1) * pairs),
                    )
                };
                self.model.embedding.dequantise_row(row.token as usize, residual);
                for (pair, &frequency) in self.model.frequencies.iter().enumerate() {
                    (sines[pair], cosines[pair]) = (row.position as f32 * frequency).sin_cos();
                }
            }
        });
    }

    /// Norms `rows` rows of the residual, `from(n)` to row `n`, and quantises them for the products that follow.
    fn norm(
        &self,
        member: Member<'_>,
        local: &mut Local,
        weight: &[f32],
        rows: usize,
        from: impl Fn(usize) -> usize,
        to: &Activations,
    ) {
        let (width, kernels) = (self.d.width, self.model.kernels);
        local.row.resize(width.max(local.row.len()), 0.0);
        member.each(rows, member.piece(rows, 1), |range| {
            for n in range {
                // SAFETY: the residual was written before a barrier.
                let residual = unsafe { self.memory.residual.read(from(n) * width..(from(n) + 1) * width) };
                vector::rms_norm(kernels, residual, weight, self.d.epsilon, &mut local.row[..width]);
                // SAFETY: a row of this member.
                unsafe { to.put(kernels, n, 0, &local.row[..width]) };
            }
        });
    }

    /// The three products share one pool of outputs.
    fn queries_keys_values(&self, member: Member<'_>, layer: &Layer) {
        let (heads, kv, stride) = (self.d.query_width(), self.d.kv_width(), self.d.qkv_width());
        let products = [(&layer.query, 0), (&layer.key, heads), (&layer.value, heads + kv)];
        let total = products.iter().map(|(matrix, _)| matrix.groups()).sum();
        member.each(total, member.piece(total, 2), |range| {
            let mut first = 0;
            for (matrix, column) in products {
                let clamp = |n: usize| n.clamp(first, first + matrix.groups()) - first;
                let groups = clamp(range.start)..clamp(range.end);
                let out = Output::on(&self.memory.qkv, stride, column);
                // SAFETY: the columns of groups of this member; the activations were written before a barrier.
                unsafe { self.model.kernels.multiply_groups(matrix, &self.memory.normed, groups, out) };
                first += matrix.groups();
            }
        });
    }

    /// Adds biases, norms and rotates queries and keys of a row, and puts its keys and values into their block.
    fn keep(&self, layer: &Layer, n: usize, row: usize, local: &mut Local) {
        let (d, kernels) = (self.d, self.model.kernels);
        let (pairs, stride, width) = (d.head_width / 2, d.qkv_width(), d.head_width);
        // SAFETY: a row of this member; the angles were written before a barrier.
        let (qkv, cosines, sines) = unsafe {
            (
                self.memory.qkv.write(row * stride..(row + 1) * stride),
                self.memory.cosines.read(row * pairs..(row + 1) * pairs),
                self.memory.sines.read(row * pairs..(row + 1) * pairs),
            )
        };
        if let Some(bias) = &layer.bias {
            vector::add(kernels, bias, qkv);
        }
        let (rotated, values) = qkv.split_at_mut(d.query_width() + d.kv_width());
        local.row.resize(width.max(local.row.len()), 0.0);
        for (head, vector) in rotated.chunks_exact_mut(width).enumerate() {
            if let Some(weight) = if head < d.heads { &layer.query_norm } else { &layer.key_norm } {
                let normed = &mut local.row[..width];
                vector::rms_norm(kernels, vector, weight, d.epsilon, normed);
                vector.copy_from_slice(normed);
            }
            match self.model.style.rope {
                Rope::Pairs => vector::rotate(kernels, vector, cosines, sines),
                Rope::Halves => vector::rotate_halves(kernels, vector, cosines, sines),
            }
        }
        let place = &self.step.rows[row];
        let position = place.position as usize;
        let block = self.step.table(&self.step.parts[place.part as usize])[position / POSITIONS];
        local.key.resize(width, 0);
        local.value.resize(width, 0);
        let keys = rotated[d.query_width()..].chunks_exact(width);
        for (head, (key, value)) in keys.zip(values.chunks_exact(width)).enumerate() {
            vector::to_halves(kernels, key, &mut local.key);
            vector::to_halves(kernels, value, &mut local.value);
            // SAFETY: this position of this block is this row's alone, and read after a barrier.
            unsafe { self.memory.arena.put(block, n, head, position % POSITIONS, &local.key, &local.value) };
        }
    }

    /// Attention by tiles and kv heads.
    fn attend(&self, member: Member<'_>, layer: usize, local: &mut Local) {
        let (d, kernels) = (self.d, self.model.kernels);
        let (stride, shared) = (d.qkv_width(), d.heads / d.kv_heads);
        let scale = 1.0 / (d.head_width as f32).sqrt();
        let columns = shared * d.head_width;
        let queries = &mut local.queries;
        member.each(self.tiles.len() * d.kv_heads, 1, |range| {
            for n in range {
                let (tile, head) = (&self.tiles[n / d.kv_heads], n % d.kv_heads);
                let table = self.step.table(&self.step.parts[tile.part]);
                queries.vectors.clear();
                queries.visible.clear();
                for row in tile.rows.clone() {
                    let first = row * stride + head * columns;
                    // SAFETY: queries were written before a barrier.
                    let vectors = unsafe { self.memory.qkv.read(first..first + columns) };
                    queries.vectors.extend(vectors.iter().map(|q| q * scale));
                    let visible = self.step.rows[row].position as usize + 1;
                    queries.visible.extend(std::iter::repeat_n(visible, shared));
                }
                let head_at = Head { arena: &self.memory.arena, table, layer, head };
                // SAFETY: keys and values were written before a barrier.
                unsafe { attention::attend(kernels, head_at, queries) };
                for (row, output) in tile.rows.clone().zip(queries.outputs.chunks_exact(columns)) {
                    // SAFETY: the blocks of this head in rows of this tile are this member's.
                    unsafe { self.memory.attended.put(kernels, row, head * columns / BLOCK, output) };
                }
            }
        });
    }

    /// Gate and up, a few columns at a time, so that the activation is applied while they are in the cache.
    fn feed_forward(&self, member: Member<'_>, layer: &Layer, local: &mut Local) {
        let (hidden, kernels) = (self.d.hidden, self.model.kernels);
        let lanes = layer.gate.lanes();
        let rows = self.step.rows.len();
        member.each(hidden / BLOCK, member.piece(hidden / BLOCK, 1), |blocks| {
            let end = blocks.end * BLOCK;
            for first in (blocks.start * BLOCK..end).step_by(HIDDEN_TOGETHER) {
                let columns = first..end.min(first + HIDDEN_TOGETHER);
                let groups = columns.start / lanes..columns.end / lanes;
                for (matrix, canvas) in [(&layer.gate, &self.memory.gate), (&layer.up, &self.memory.up)] {
                    let out = Output::on(canvas, hidden, 0);
                    // SAFETY: columns of this member; the activations were written before a barrier.
                    unsafe { kernels.multiply_groups(matrix, &self.memory.normed, groups.clone(), out) };
                }
                let len = columns.len();
                local.row.resize(len.max(local.row.len()), 0.0);
                for row in 0..rows {
                    let range = row * hidden + columns.start..row * hidden + columns.end;
                    // SAFETY: columns of this member.
                    unsafe {
                        let (gate, up) = (self.memory.gate.read(range.clone()), self.memory.up.read(range));
                        vector::swiglu(kernels, gate, up, &mut local.row[..len]);
                        self.memory.hidden.put(kernels, row, columns.start / BLOCK, &local.row[..len]);
                    }
                }
            }
        });
    }

    /// Multiplies activations back to the width of the residual stream and adds them to it.
    fn project(&self, member: Member<'_>, matrix: &Packed, x: &Activations) {
        let (width, kernels) = (self.d.width, self.model.kernels);
        member.each(matrix.groups(), member.piece(matrix.groups(), 2), |groups| {
            let columns = groups.start * matrix.lanes()..width.min(groups.end * matrix.lanes());
            let out = Output::on(&self.memory.projected, width, 0);
            // SAFETY: columns of this member; the activations were written before a barrier.
            unsafe {
                kernels.multiply_groups(matrix, x, groups, out);
                for row in 0..x.rows() {
                    let range = row * width + columns.start..row * width + columns.end;
                    let projected = self.memory.projected.read(range.clone());
                    vector::add(kernels, projected, self.memory.residual.write(range));
                }
            }
        });
    }

    /// Multiplies the rows that want logits by the output matrix.
    fn draw_from(&self, member: Member<'_>) {
        let output = self.model.output.as_ref().unwrap_or(&self.model.embedding);
        if self.wanted.is_empty() {
            return;
        }
        member.each(output.groups(), member.piece(output.groups(), 4), |groups| {
            let out = Output::on(&self.memory.logits, self.d.vocabulary, 0);
            // SAFETY: columns of this member; the activations were written before a barrier.
            unsafe { self.model.kernels.multiply_groups(output, &self.memory.drawn, groups, out) };
        });
    }
}
