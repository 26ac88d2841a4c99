//! Joins a channel of the node on this machine, says one thing, and prints what the others say.
//!
//! ```sh
//! cargo run --release -- serve                       # in one terminal
//! cargo run --release -p thalweg-client --example chat -- general "hello from the SDK"
//! ```

use thalweg_client::{Client, ClientError, Item, SubscribeOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let mut arguments = std::env::args().skip(1);
    let channel = arguments.next().unwrap_or_else(|| "general".into());
    let client = Client::builder().local(data_directory()).name("example-chat/1").connect().await?;

    let mut subscription = client.subscribe(&channel, SubscribeOptions::default()).await?;
    if let Some(text) = arguments.next() {
        let published = client.publish(&channel, text).await?;
        println!("written at position {}", published.position);
    }
    while let Some(item) = subscription.next().await? {
        match item {
            Item::Message(message) => println!("{}: {}", message.user, String::from_utf8_lossy(&message.body)),
            Item::Missed { from, to } => println!("(missed {from} to {to})"),
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
