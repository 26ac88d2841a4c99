//! Opens a document of the node on this machine, adds a line to it, and prints what others do to it.
//!
//! ```sh
//! cargo run --release -- serve                       # in one terminal
//! cargo run --release -p thalweg-client --example edit -- notes "a line from the SDK"
//! ```

use thalweg_client::{Client, ClientError, DocumentEvent};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "notes".into());
    let client = Client::builder().local(data_directory()).name("example-edit/1").connect().await?;

    let mut document = client.document(&name).open().await?;
    println!("{}", document.text());
    if let Some(line) = arguments.next() {
        // On our copy at once, and sent behind; the revision comes when it is durable.
        let revision = document.insert(document.length(), &format!("{line}\n"))?.await?;
        println!("(written as revision {revision})");
    }
    let end = document.length();
    document.set_cursor(Some((end, end)));
    while let Some(event) = document.next().await? {
        match event {
            DocumentEvent::Changed(change) => {
                let who = change.user.map_or("several".to_owned(), |user| user.to_string());
                println!("{who}: {:?}", change.operations.parts());
            }
            DocumentEvent::Others => {
                let names: Vec<_> = document.others().into_iter().map(|other| other.name).collect();
                println!("here: {}", names.join(", "));
            }
            DocumentEvent::Offline { reason } => println!("(the node is away: {reason})"),
            DocumentEvent::Online => println!("(the node is back)"),
            _ => {}
        }
    }
    Ok(())
}

/// Where a node of this user keeps its data, unless `THALWEG_DATA` says otherwise.
fn data_directory() -> std::path::PathBuf {
    let state = || std::env::var_os("XDG_STATE_HOME").map(std::path::PathBuf::from);
    let home = || std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/state");
    std::env::var_os("THALWEG_DATA").map_or_else(|| state().unwrap_or_else(home).join("thalweg"), Into::into)
}
