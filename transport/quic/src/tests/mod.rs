//! A [`Pair`](pair::Pair): our connections against clients of plain quinn-proto, over a network that loses, reorders
//! and repeats, on a clock of its own.

mod hostile;
mod links;
mod pair;
