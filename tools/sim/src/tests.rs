//! A few seeds in the test run; planted defects must be found.

use super::*;

#[test]
fn a_few_seeds_are_sound_and_the_same_twice() {
    for seed in 0..6 {
        let report = simulate(seed, Options::default());
        assert_eq!(report.violations, Vec::<String>::new(), "seed {seed}");
        assert!(report.crashes >= 3, "seed {seed}: the node died {} times only", report.crashes);
    }
    let hash = |seed| simulate(seed, Options::default()).hash;
    assert_eq!(hash(1), hash(1), "a seed gives the same run again");
    assert_ne!(hash(1), hash(2), "the seed matters");
}

/// Plants a defect in a few seeds and counts those in which one of `words` is said about it. A run whose defect had nothing
/// to act on may be sound.
fn check(plant: Plant, seeds: u64, least: usize, words: &[&str]) {
    let found = |seed| {
        let report = simulate(seed, Options { plant: Some(plant), operations: 1_500, ..Options::default() });
        report.violations.iter().any(|violation| words.iter().any(|word| violation.contains(word)))
    };
    let found = (0..seeds).filter(|&seed| found(seed)).count();
    println!("{plant:?} was found in {found} of {seeds} seeds");
    assert!(found >= least, "{plant:?} was found in {found} of {seeds} seeds");
}

#[test]
fn defects_of_clients_and_lanes_are_found() {
    check(Plant::LoseDelivery, 6, 4, &["AckedLost", "Gap"]);
    check(Plant::DoubleDelivery, 6, 4, &["Doubled"]);
    check(Plant::SwapDeliveries, 6, 4, &["OutOfOrder", "Doubled", "AckedLost", "Gap"]);
    check(Plant::LoseTokens, 6, 4, &["TokensGap", "TokensMissing"]);
    check(Plant::DoubleTokens, 6, 4, &["TokensDoubled"]);
    check(Plant::ChangeText, 6, 4, &["are b"]);
    check(Plant::CursorOffByOne, 6, 4, &["AckedLost", "Gap"]);
}

#[test]
fn defects_of_a_node_and_its_log_are_found() {
    check(Plant::AnswerBeforeSync, 6, 4, &["durable to", "nobody damaged", "AckedLost", "BodyDiffers"]);
    check(Plant::ForgetCommands, 8, 3, &["ExecutedTwice", "and again to", "AckMoved"]);
    check(Plant::LoseTombstone, 40, 3, &["was deleted and is written to"]);
    check(Plant::ResumeLate, 8, 4, &["that were not its own"]);
    check(Plant::LoseLastBatch, 12, 4, &["durable to"]);
    check(Plant::ResurrectRecycled, 12, 4, &["nobody damaged", "recovered is not what was durable"]);
    check(Plant::BelieveTorn, 48, 2, &["nobody damaged", "recovered is not what was durable"]);
    check(Plant::ForgetDirectory, 6, 4, &["nobody damaged", "durable to"]);
    check(Plant::DropKept, 8, 4, &["came, from", "are missing"]);
}

#[test]
fn defects_of_documents_are_found() {
    check(Plant::DropUpdate, 6, 4, &["does not follow", "ends with"]);
    check(Plant::DoubleOperation, 8, 4, &["times"]);
    check(Plant::KeepDeletedText, 16, 3, &["documents of that name"]);
    check(Plant::RestoreOther, 12, 3, &["it was made what it was"]);
    check(Plant::ReadOther, 6, 4, &["is said to have read"]);
    check(Plant::TakeHostile, 6, 4, &["an update that is"]);
}

#[test]
fn defects_of_models_in_documents_are_found() {
    check(Plant::IgnoreStop, 48, 3, &["after it was stopped"]);
    check(Plant::MakeUpCredit, 12, 4, &["are durable and"]);
    check(Plant::WriteTwice, 6, 4, &["was written of it"]);
}

#[test]
fn defects_of_people_and_their_places_are_found() {
    check(Plant::ForgetRedactions, 8, 4, &["TextBack", "was taken back and is"]);
    check(Plant::ForgetRemovals, 12, 4, &["RoleImpossible", "ShownToStranger", "WrittenByStranger"]);
    check(Plant::ForgetMembers, 12, 4, &["RoleImpossible", "Unlisted", "RefusedToMember", "conversation"]);
    check(Plant::ReadBackwards, 8, 4, &["ReadingImpossible"]);
    check(Plant::ForgetProfiles, 8, 4, &["ProfileImpossible"]);
    check(Plant::ForgetNumbers, 8, 4, &["were counted", "are unread"]);
    check(Plant::KeepReaders, 120, 1, &["ShownToStranger"]);
    check(Plant::LosePresence, 12, 2, &["people where", "where {"]);
    check(Plant::KeepLimits, 24, 1, &["its last word, was refused", "was refused: "]);
    check(Plant::RefuseCarriedOut, 24, 2, &["RefusedDelivered", "which was carried out, was refused"]);
    check(Plant::MixTenants, 24, 3, &["Phantom", "Shared", "BodyDiffers", "nobody made", "of another", "where {"]);
}
