//! What the disk forgets, and what not.

use super::*;

fn read(disk: &FakeDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(path).ok()?;
    let mut bytes = vec![0; file.bytes().expect("length") as usize];
    file.read_at(0, &mut bytes).expect("read");
    Some(bytes)
}

#[test]
fn what_was_synced_stays_and_the_rest_may_go() {
    let (mut lost, mut torn, mut kept, mut undone, mut named) = (0, 0, 0, 0, 0);
    for seed in 0..200 {
        let disk = FakeDisk::new(seed);
        let file = disk.create("d/a").expect("create");
        file.allocate(8_192).expect("allocate");
        file.write_at(0, &[1; 1_024]).expect("write");
        file.sync().expect("sync");
        disk.sync_dir("d").expect("sync");
        file.write_at(1_024, &[2; 1_024]).expect("write");
        disk.rename("d/a", "d/b").expect("rename");
        disk.create("d/c").expect("create");
        disk.crash();
        assert!(file.sync().is_err(), "what was opened in another life is of no use");
        let names = disk.list("d").expect("list");
        let path = match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["a"] => "d/a",
            ["b"] | ["b", "c"] => "d/b",
            _ => panic!("changes of a directory stay in order: {names:?}"),
        };
        undone += u32::from(path == "d/a");
        named += u32::from(path == "d/b");
        let bytes = read(&disk, path).expect("it was made durable under one of its names");
        assert_eq!((bytes.len(), &bytes[..1_024]), (8_192, &[1; 1_024][..]), "seed {seed}");
        assert!(bytes[2_048..].iter().all(|&byte| byte == 0));
        match bytes[1_024..2_048].iter().filter(|&&byte| byte == 2).count() {
            0 => lost += 1,
            512 => torn += 1,
            1_024 => kept += 1,
            n => panic!("{n} bytes are no whole sectors"),
        }
    }
    assert!([lost, torn, kept, undone, named].iter().all(|&n| n > 5), "{lost} {torn} {kept} {undone} {named}");
}

#[test]
fn the_power_goes_in_the_operation_that_was_chosen() {
    for operation in 0..6 {
        let disk = FakeDisk::new(operation);
        disk.crash_in(operation);
        let work = || {
            let file = disk.create("a")?;
            file.write_at(0, &[1; 100])?;
            file.sync()?;
            disk.rename("a", "b")?;
            disk.sync_dir("")
        };
        assert_eq!(work().is_err(), operation < 5, "{operation}");
        assert_eq!(disk.is_off(), operation < 5);
        disk.crash();
        if operation == 5 {
            assert_eq!(read(&disk, "b"), Some(vec![1; 100]));
        }
    }
}

#[test]
fn a_full_disk_a_failing_sync_and_rot() {
    let disk = FakeDisk::new(1);
    let file = disk.create("a").expect("create");
    disk.limit(1_000);
    file.allocate(1_000).expect("there is room");
    assert_eq!(file.allocate(1_001), Err(DiskError::Full { path: "a".into() }));
    file.write_at(0, &[7; 1_000]).expect("the room is there already");
    disk.fail_sync_in(0);
    assert!(file.sync().is_err());
    file.sync().expect("the second one says nothing");
    disk.sync_dir("").expect("sync");
    let rot = disk.rot("a", 10, 3).expect("there");
    let before = disk.content("a").expect("there");
    assert_eq!(before[10], 7 ^ 8);
    disk.repair(&rot);
    assert_eq!(disk.content("a").expect("there")[10], 7);
}
