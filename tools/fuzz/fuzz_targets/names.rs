//! Names, ids, permissions and traces from text: what is accepted is within its limits and says the same when it is written
//! and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_domain::permission::{Permission, matches};
use thalweg_protocol::ids::{GenerationId, Name, Position, Sequence, partition_of};
use thalweg_protocol::limits::{NAME_BYTES_MAX, PARTITIONS_DEFAULT};
use thalweg_protocol::trace::TraceContext;

fuzz_target!(|input: &[u8]| {
    if let Ok(name) = Name::from_bytes(input) {
        assert_eq!(name.as_str().as_bytes(), input);
        assert!(!input.is_empty() && input.len() <= NAME_BYTES_MAX);
        assert!(!name.as_str().contains(|c: char| c.is_whitespace() || c.is_control()));
        assert!(partition_of(&name, name.as_str(), PARTITIONS_DEFAULT).0 < PARTITIONS_DEFAULT);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(id) = text.parse::<GenerationId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    if let Ok(sequence) = text.parse::<Sequence>() {
        assert_eq!(sequence.to_string().parse(), Ok(sequence));
    }
    if let Ok(trace) = text.parse::<TraceContext>() {
        assert_eq!(trace.to_string().parse(), Ok(trace));
    }
    if let Ok(permission) = text.parse::<Permission>() {
        assert_eq!(permission.to_string().parse(), Ok(permission.clone()));
        assert!(matches(&permission.pattern, &permission.pattern), "a pattern covers itself");
    }
});
