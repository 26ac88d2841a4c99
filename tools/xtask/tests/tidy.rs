//! The repository keeps its own rules.

#[test]
fn the_house_is_tidy() {
    let found = xtask::tidy::check(&xtask::root()).expect("the repository can be read");
    let list: String = found.iter().map(|violation| format!("{violation}\n")).collect();
    assert!(found.is_empty(), "{} violations:\n{list}", found.len());
}
