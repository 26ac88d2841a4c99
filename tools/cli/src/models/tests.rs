use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::catalogue::{HubFile, KnownFile};
use super::*;

fn digest(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

fn known_model(bytes: &[u8]) -> KnownModel {
    let file = KnownFile {
        name: GGUF_FILE.into(),
        bytes: bytes.len() as u64,
        sha256: digest(bytes),
        wheel: Vec::new(),
        hub: Some(HubFile { repository: "owner/model".into(), file: "weights.gguf".into() }),
    };
    let (name, about, licence) = ("tiny".into(), "a test".into(), "MIT".into());
    KnownModel { name, class: Class::Chat, about, licence, files: vec![file] }
}

/// What a scripted server answers one request with.
struct Answer {
    /// Whether it understands ranges.
    ranges: bool,
    /// It hangs up after so many bytes of the body.
    cut_after: usize,
}

/// Serves `body` once per answer; gives the request lines and ranges it saw.
fn serve(body: &'static [u8], answers: Vec<Answer>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let server = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a client");
            let lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
            let head: Vec<_> = lines.map(|line| line.expect("text")).take_while(|line| !line.is_empty()).collect();
            let range =
                head.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            let from = range.as_deref().and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
            seen.push(format!("{} {}", head[0], range.unwrap_or_default()));
            let (status, from) = if from > 0 && answer.ranges { ("206 Partial Content", from) } else { ("200 OK", 0) };
            let (rest, total) = (&body[from..], body.len());
            let mut text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", rest.len());
            if from > 0 {
                text += &format!("content-range: bytes {from}-{}/{total}\r\n", total - 1);
            }
            stream.write_all((text + "\r\n").as_bytes()).expect("sent");
            stream.write_all(&rest[..rest.len().min(answer.cut_after)]).expect("sent");
        }
        seen
    });
    (endpoint, server)
}

#[test]
fn a_download_goes_on_where_it_was_cut_off() {
    static BODY: &[u8] = &[7; 100_000];
    let check = |ranges: bool, expected: &[&str]| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let answers = vec![Answer { ranges, cut_after: 40_000 }, Answer { ranges, cut_after: usize::MAX }];
        let (endpoint, server) = serve(BODY, answers);
        let file = &known_model(BODY).files[0];
        let cut = fetch::from_hub(file, &endpoint, directory.path()).expect_err("cut off").message;
        assert!(cut.contains("try again"), "{cut}");
        fetch::from_hub(file, &endpoint, directory.path()).expect("whole");
        assert_eq!(server.join().expect("no panic"), expected);
        assert_eq!(fs::read(directory.path().join(GGUF_FILE)).expect("there"), BODY);
    };
    let first = "GET /owner/model/resolve/main/weights.gguf HTTP/1.1 ";
    check(true, &[first, &format!("{first}40000-")]);
    check(false, &[first, &format!("{first}40000-")]);
}

#[test]
fn wrong_bytes_are_thrown_away() {
    static BODY: &[u8] = b"not the model";
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (endpoint, server) = serve(BODY, vec![Answer { ranges: true, cut_after: usize::MAX }]);
    let mut file = known_model(BODY).files.remove(0);
    file.sha256 = digest(b"the model");
    let error = fetch::from_hub(&file, &endpoint, directory.path()).expect_err("wrong").message;
    assert!(error.contains("not the right file") && error.contains(&file.sha256), "{error}");
    assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 0, "nothing is left to go on from");
    server.join().expect("no panic");
}

#[test]
fn a_model_is_pulled_from_a_file_found_listed_and_removed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::new(directory.path().join("models"));
    let (right, wrong) = (directory.path().join("right"), directory.path().join("wrong"));
    let body = b"GGUF and the rest";
    fs::write(&right, body).expect("written");
    fs::write(&wrong, b"GGUF and another").expect("written");
    let model = known_model(body);
    assert!(store.find("tiny").expect("a good name").is_none());
    assert!(store.list().expect("no directory is no models").is_empty());

    let error = store.pull(&model, &Source::File(wrong)).expect_err("another digest").message;
    assert!(error.contains("sha256"), "{error}");
    let installed = store.pull(&model, &Source::File(right.clone())).expect("pulled");
    assert_eq!(fs::read(&installed.path).expect("there"), body);
    assert_eq!(installed.metadata.sha256, digest(body));
    // Again: nothing to do, not even a look at the source.
    store.pull(&model, &Source::File("/nowhere".into())).expect("here already");

    let added = store.add("mine", &right).expect("added");
    assert_eq!((added.metadata.class, added.metadata.licence), (Class::Chat, None));
    let names: Vec<_> = store.list().expect("listed").into_iter().map(|m| m.expect("whole").metadata.name).collect();
    assert_eq!(names, ["mine", "tiny"]);
    assert!(store.add("mine", &right).expect_err("taken").message.contains("already"));
    assert!(store.remove("mine").expect("removed"));
    assert!(!store.remove("mine").expect("a good name"));
}

#[test]
fn damaged_models_and_bad_names_are_refused_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::new(directory.path().join("models"));
    let file = directory.path().join("x.gguf");
    fs::write(&file, b"GGUF").expect("written");
    store.add("mine", &file).expect("added");
    fs::write(store.root().join("mine").join(GGUF_FILE), b"GG").expect("cut");
    let error = store.find("mine").expect_err("damaged").message;
    assert!(error.contains("has 2 bytes, not 4") && error.contains("models rm mine"), "{error}");
    assert!(store.list().expect("listed")[0].is_err());

    let check = |name: &str, path: &Path, expected: &str| {
        let error = store.add(name, path).expect_err(name).message;
        assert!(error.contains(expected), "{name:?}: {error}");
    };
    fs::write(&file, b"PK\x03\x04").expect("written");
    check("other", &file, "not a GGUF file");
    check("other", Path::new("/nowhere/x.gguf"), "No such file");
    check("smollm2-135m", &file, "known model");
    for bad in ["", "..", "a/b", ".hidden", "two words", "a,b"] {
        check(bad, &file, "name");
    }
}
