//! The exporter against collectors of all manners, and whole nodes that are traced.

mod collector;
mod exporting;
mod nodes;
