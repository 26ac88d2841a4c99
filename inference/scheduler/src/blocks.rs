//! KV memory as blocks: who holds which, what lies in them, and what of it can be found again.
//!
//! A block is *free*, *held* by one or more sequences, or *cached*: nobody holds it, but what lies in it may be asked for
//! again. Blocks whose content is known form one tree per tenant: a block's parent is the one with the tokens right
//! before, and it is found below that parent by its own tokens, all of which are compared. Who holds a block holds its
//! parents too, so what nobody holds can go leaf by leaf, least recently used first.
//!
//! A block is written by the one sequence that holds it and before its content is known. Shared blocks are full, so a
//! sequence never has to write one; where a sequence needs only the beginning of a known block, it gets a copy.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::plan::BlockCopy;

/// The blocks right after a place in the tree, by their tokens.
type Children = BTreeMap<Box<[u32]>, u32>;

/// What comes right before a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nothing: it is the first of a tenant's sequence.
    Tenant(u64),
    /// Another block, which is full and known.
    Block(u32),
}

/// What lies in a block that can be found again.
#[derive(Debug)]
struct Content {
    parent: Parent,
    tokens: Box<[u32]>,
    children: Children,
}

#[derive(Debug, Default)]
struct Block {
    /// How many sequences hold it.
    holders: u32,
    /// When it was held last, by the count of such events.
    used: u64,
    content: Option<Content>,
}

/// A sequence's memory.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    /// Its blocks, in order of positions.
    pub(crate) table: Vec<u32>,
    /// How many of them, from the first, are full and in the tree.
    pub(crate) known: usize,
    /// Blocks it may still ask for, and will get.
    pub(crate) promised: usize,
}

impl Seat {
    /// Blocks it has or will have.
    pub(crate) fn blocks(&self) -> usize {
        self.table.len() + self.promised
    }
}

/// What is known already of a sequence's beginning.
#[derive(Debug, Default)]
struct Found {
    /// Full blocks.
    full: Vec<u32>,
    /// A block behind those that begins as the sequence goes on, and for how many tokens.
    part: Option<(u32, usize)>,
}

/// All blocks of a model's KV memory.
#[derive(Debug)]
pub(crate) struct Blocks {
    block_tokens: usize,
    blocks: Vec<Block>,
    free: Vec<u32>,
    roots: BTreeMap<u64, Children>,
    /// Cached blocks without children, least recently used first.
    leaves: BTreeSet<(u64, u32)>,
    /// Held until the copies of this plan are made.
    pinned: Vec<u32>,
    cached: usize,
    shared: usize,
    promised: usize,
    clock: u64,
    /// Blocks whose content was given up for other content.
    pub(crate) dropped: u64,
}

impl Blocks {
    pub(crate) fn new(count: usize, block_tokens: usize) -> Self {
        Self {
            block_tokens,
            blocks: (0..count).map(|_| Block::default()).collect(),
            // The lowest first: memory that was never touched costs nothing.
            free: (0..count as u32).rev().collect(),
            roots: BTreeMap::new(),
            leaves: BTreeSet::new(),
            pinned: Vec::new(),
            cached: 0,
            shared: 0,
            promised: 0,
            clock: 0,
            dropped: 0,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that sequences hold.
    pub(crate) fn used(&self) -> usize {
        self.blocks.len() - self.free.len() - self.cached
    }

    /// Blocks that nobody holds and whose content is known.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    /// Blocks that more than one sequence holds.
    pub(crate) fn shared(&self) -> usize {
        self.shared
    }

    /// Blocks that sequences have been promised and do not have yet.
    pub(crate) fn promised(&self) -> usize {
        self.promised
    }

    /// Blocks that nobody holds and nobody was promised.
    pub(crate) fn available(&self) -> usize {
        let unheld = self.free.len() + self.cached;
        debug_assert!(unheld >= self.promised, "no more is promised than there is");
        unheld - self.promised
    }

    /// How many blocks have to be [available](Self::available) to [seat](Self::seat) a sequence that may need `total`.
    pub(crate) fn needed(&self, tenant: u64, tokens: &[u32], total: usize) -> usize {
        self.cost(&self.find(tenant, tokens), total)
    }

    fn cost(&self, found: &Found, total: usize) -> usize {
        let revived = found.full.iter().filter(|&&block| self.blocks[block as usize].holders == 0).count();
        total - found.full.len() + revived
    }

    /// How many blocks become available when a seat is given up.
    pub(crate) fn gain(&self, seat: &Seat) -> usize {
        seat.promised + seat.table.iter().filter(|&&block| self.blocks[block as usize].holders == 1).count()
    }

    /// Gives memory to a sequence that has `tokens` and may need `total` blocks, if that many are there. Gives its seat, and
    /// how many of its tokens are computed already: all but one at most. What has to be copied for that is put to `copies`;
    /// sources stay as they are until [`Self::unpin`].
    pub(crate) fn seat(
        &mut self,
        tenant: u64,
        tokens: &[u32],
        total: usize,
        copies: &mut Vec<BlockCopy>,
    ) -> Option<(Seat, usize)> {
        let found = self.find(tenant, tokens);
        if self.available() < self.cost(&found, total) {
            return None;
        }
        found.full.iter().for_each(|&block| self.hold(block));
        let known = found.full.len();
        let mut computed = known * self.block_tokens;
        let mut seat = Seat { table: found.full, known, promised: total - known };
        self.promised += seat.promised;
        if let Some((from, count)) = found.part {
            let spare = self.available() > 0 || self.blocks[from as usize].holders > 0;
            if spare {
                self.hold(from);
                self.pinned.push(from);
                self.grow(&mut seat, computed + 1);
                let to = *seat.table.last().expect("it has just grown");
                copies.push(BlockCopy { from, to, tokens: count as u32 });
                computed += count;
            } else if self.claim(from) {
                seat.table.push(from);
                seat.promised -= 1;
                self.promised -= 1;
                computed += count;
            }
        }
        Some((seat, computed))
    }

    /// Lets go of what copies were made from.
    pub(crate) fn unpin(&mut self) {
        for block in std::mem::take(&mut self.pinned) {
            self.let_go(block);
        }
    }

    /// Gives a seat the promised blocks it needs for `tokens` tokens.
    pub(crate) fn grow(&mut self, seat: &mut Seat, tokens: usize) {
        while seat.table.len() * self.block_tokens < tokens {
            assert!(seat.promised > 0, "a sequence asks for what it was promised only");
            let block = self.take();
            seat.table.push(block);
            seat.promised -= 1;
            self.promised -= 1;
        }
    }

    /// What comes right before block `at` of a seat.
    pub(crate) fn parent(tenant: u64, seat: &Seat, at: usize) -> Parent {
        at.checked_sub(1).map_or(Parent::Tenant(tenant), |before| Parent::Block(seat.table[before]))
    }

    /// Gives a seat, whose blocks are all full and known, the next ones if another sequence has computed them meanwhile.
    /// Gives how many tokens that saves; the last of `tokens` is never among them.
    pub(crate) fn catch_up(&mut self, tenant: u64, seat: &mut Seat, tokens: &[u32]) -> usize {
        let mut saved = 0;
        while seat.known == seat.table.len() {
            let start = seat.known * self.block_tokens;
            let Some(next) =
                tokens.get(start..start + self.block_tokens).filter(|next| start + next.len() < tokens.len())
            else {
                break;
            };
            let children = self.children(Self::parent(tenant, seat, seat.known));
            let Some(&block) = children.and_then(|children| children.get(next)) else { break };
            self.hold(block);
            seat.table.push(block);
            (seat.known, seat.promised, self.promised) = (seat.known + 1, seat.promised - 1, self.promised - 1);
            saved += self.block_tokens;
        }
        saved
    }

    /// Makes the blocks of a seat known that became full now that `computed` of its tokens are computed. Where another
    /// sequence was first with equal content, the seat gets that one's block for its own.
    pub(crate) fn publish(&mut self, tenant: u64, seat: &mut Seat, tokens: &[u32], computed: usize) {
        while (seat.known + 1) * self.block_tokens <= computed {
            let (at, start) = (seat.known, seat.known * self.block_tokens);
            let content = &tokens[start..start + self.block_tokens];
            let parent = Self::parent(tenant, seat, at);
            let own = seat.table[at];
            match self.children(parent).and_then(|children| children.get(content).copied()) {
                Some(first) => {
                    self.hold(first);
                    self.let_go(own);
                    seat.table[at] = first;
                }
                None => self.enter(own, parent, content),
            }
            seat.known += 1;
        }
    }

    /// Gives a seat up. What was computed of it can be found again.
    pub(crate) fn release(&mut self, tenant: u64, mut seat: Seat, tokens: &[u32], computed: usize) {
        self.publish(tenant, &mut seat, tokens, computed);
        let rest = &tokens[seat.known * self.block_tokens..computed];
        if !rest.is_empty() {
            let parent = Self::parent(tenant, &seat, seat.known);
            let begins_other = self.children(parent).and_then(|children| longest(children, rest));
            if begins_other.is_none_or(|(_, common)| common < rest.len()) {
                self.enter(seat.table[seat.known], parent, rest);
            }
        }
        self.give_up(&seat);
    }

    /// Gives a seat up whose content cannot be trusted: what nobody else holds of it is forgotten.
    pub(crate) fn discard(&mut self, seat: &Seat) {
        self.give_up(seat);
        for &block in &seat.table {
            if self.blocks[block as usize].holders == 0 && self.blocks[block as usize].content.is_some() {
                self.forget(block);
            }
        }
    }

    fn give_up(&mut self, seat: &Seat) {
        self.promised -= seat.promised;
        // From the last on, so that the last is also the first to go.
        seat.table.iter().rev().for_each(|&block| self.let_go(block));
    }

    /// The longest known beginning of `tokens` without the last.
    fn find(&self, tenant: u64, tokens: &[u32]) -> Found {
        let mut found = Found::default();
        let mut rest = &tokens[..tokens.len().saturating_sub(1)];
        let mut parent = Parent::Tenant(tenant);
        while let Some(children) = self.children(parent).filter(|_| !rest.is_empty()) {
            if rest.len() >= self.block_tokens
                && let Some(&block) = children.get(&rest[..self.block_tokens])
            {
                found.full.push(block);
                parent = Parent::Block(block);
                rest = &rest[self.block_tokens..];
                continue;
            }
            found.part = longest(children, &rest[..rest.len().min(self.block_tokens)]);
            break;
        }
        found
    }

    fn children(&self, parent: Parent) -> Option<&Children> {
        match parent {
            Parent::Tenant(tenant) => self.roots.get(&tenant),
            Parent::Block(block) => self.blocks[block as usize].content.as_ref().map(|content| &content.children),
        }
    }

    /// Puts a held block into the tree.
    fn enter(&mut self, block: u32, parent: Parent, tokens: &[u32]) {
        self.supersede(parent, tokens);
        let children = match parent {
            Parent::Tenant(tenant) => self.roots.entry(tenant).or_default(),
            Parent::Block(above) => {
                let above = self.blocks[above as usize].content.as_mut();
                &mut above.expect("what comes before is known").children
            }
        };
        assert!(children.insert(tokens.into(), block).is_none(), "content is known once");
        let content = Content { parent, tokens: tokens.into(), children: Children::new() };
        assert!(self.blocks[block as usize].content.replace(content).is_none(), "a block has one content");
    }

    /// Frees a cached block that `tokens`, which come in its stead, begin with.
    fn supersede(&mut self, parent: Parent, tokens: &[u32]) {
        let before = (Bound::Unbounded, Bound::Excluded(tokens));
        let last = self.children(parent).and_then(|children| children.range::<[u32], _>(before).next_back());
        if let Some((_, &block)) = last.filter(|(shorter, _)| tokens.starts_with(shorter))
            && self.blocks[block as usize].holders == 0
        {
            self.forget(block);
        }
    }

    /// Takes a block out of the tree. It has no children.
    fn leave(&mut self, block: u32) {
        let content = self.blocks[block as usize].content.take().expect("only what is known is taken out");
        debug_assert!(content.children.is_empty(), "leaves first");
        match content.parent {
            Parent::Tenant(tenant) => {
                let children = self.roots.get_mut(&tenant).expect("it is below its tenant");
                children.remove(&content.tokens);
                if children.is_empty() {
                    self.roots.remove(&tenant);
                }
            }
            Parent::Block(above) => {
                let parent = &mut self.blocks[above as usize];
                let children = &mut parent.content.as_mut().expect("it is below its parent").children;
                children.remove(&content.tokens);
                if children.is_empty() && parent.holders == 0 {
                    self.leaves.insert((parent.used, above));
                }
            }
        }
    }

    /// Takes a cached block and all below it out of the tree and frees them.
    fn forget(&mut self, block: u32) {
        while let Some(content) = &self.blocks[block as usize].content {
            // The depth is that of a context in blocks, and few levels in practice; so down to a leaf, and again.
            let mut leaf = block;
            let mut below = content.children.first_key_value();
            while let Some((_, &child)) = below {
                leaf = child;
                let content = self.blocks[leaf as usize].content.as_ref().expect("what is in the tree is known");
                below = content.children.first_key_value();
            }
            self.drop_leaf(leaf);
            self.free.push(leaf);
        }
    }

    /// Takes a cached leaf out of the tree: it is neither cached nor free nor held then.
    fn drop_leaf(&mut self, block: u32) {
        assert!(self.leaves.remove(&(self.blocks[block as usize].used, block)), "it is a cached leaf");
        self.cached -= 1;
        self.leave(block);
    }

    /// A block for one holder, whose content nobody knows.
    fn take(&mut self) -> u32 {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let &(_, block) = self.leaves.first().expect("what is promised is there");
                self.drop_leaf(block);
                self.dropped += 1;
                block
            }
        };
        self.blocks[block as usize].holders = 1;
        block
    }

    /// Makes a cached leaf the block of one holder who goes on writing it.
    fn claim(&mut self, block: u32) -> bool {
        let is_leaf = self.leaves.contains(&(self.blocks[block as usize].used, block));
        if is_leaf {
            self.drop_leaf(block);
            self.blocks[block as usize].holders = 1;
        }
        is_leaf
    }

    fn hold(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        block.holders += 1;
        match block.holders {
            1 => {
                assert!(block.content.is_some(), "what nobody held is asked for by its content");
                self.cached -= 1;
                self.leaves.remove(&(block.used, number));
            }
            2 => self.shared += 1,
            _ => {}
        }
    }

    fn let_go(&mut self, number: u32) {
        self.clock += 1;
        let block = &mut self.blocks[number as usize];
        block.holders = block.holders.checked_sub(1).expect("who lets go held it");
        match (block.holders, &block.content) {
            (0, None) => self.free.push(number),
            (0, Some(content)) => {
                self.cached += 1;
                block.used = self.clock;
                if content.children.is_empty() {
                    self.leaves.insert((block.used, number));
                }
            }
            (1, _) => self.shared -= 1,
            _ => {}
        }
    }
}

/// The child that has the longest beginning in common with `tokens`, and how long that is; none if not even one token is.
fn longest(children: &Children, tokens: &[u32]) -> Option<(u32, usize)> {
    // In sorted order nothing has more in common with `tokens` than its neighbours.
    let after = children.range::<[u32], _>((Bound::Included(tokens), Bound::Unbounded)).next();
    let before = children.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(tokens))).next_back();
    let common = |other: &[u32]| tokens.iter().zip(other).take_while(|(a, b)| a == b).count();
    let both = after.into_iter().chain(before).map(|(other, &block)| (block, common(other)));
    both.filter(|&(_, common)| common > 0).reduce(|a, b| if b.1 > a.1 { b } else { a })
}

#[cfg(test)]
impl Blocks {
    /// Panics unless everything adds up: `seats` are all that are held.
    pub(crate) fn check<'a>(&self, seats: impl Iterator<Item = &'a Seat>) {
        let mut holders = vec![0; self.blocks.len()];
        let mut promised = 0;
        for seat in seats {
            promised += seat.promised;
            for (at, &block) in seat.table.iter().enumerate() {
                holders[block as usize] += 1;
                assert_eq!(self.blocks[block as usize].content.is_some(), at < seat.known, "full ones are known");
                let is_shared = self.blocks[block as usize].holders > 1;
                assert!(at < seat.known || !is_shared, "what is written is held by one");
            }
            for at in 1..seat.known {
                let content = self.blocks[seat.table[at] as usize].content.as_ref().expect("known");
                assert_eq!(content.parent, Parent::Block(seat.table[at - 1]), "tables follow the tree");
            }
        }
        assert!(self.pinned.is_empty(), "pins end with the plan");
        assert_eq!(promised, self.promised);
        assert!(self.promised <= self.free.len() + self.cached, "never overcommitted");
        let mut cached = 0;
        for (number, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.holders, holders[number], "block {number}");
            let is_free = self.free.contains(&(number as u32));
            assert_eq!(is_free, block.holders == 0 && block.content.is_none(), "block {number} is in one place");
            let is_cached = block.holders == 0 && block.content.is_some();
            cached += usize::from(is_cached);
            let is_leaf = is_cached && block.content.as_ref().is_some_and(|content| content.children.is_empty());
            assert_eq!(self.leaves.contains(&(block.used, number as u32)), is_leaf, "block {number} can go");
            for &child in block.content.iter().flat_map(|content| content.children.values()) {
                assert!(block.holders >= self.blocks[child as usize].holders, "who holds a block holds what is before");
            }
        }
        assert_eq!((cached, self.free.len()), (self.cached, self.free.iter().collect::<BTreeSet<_>>().len()));
        assert_eq!(self.shared, holders.iter().filter(|&&holders| holders > 1).count());
    }
}
