//! Asks the model of the node on this machine and prints its answer as it comes.
//!
//! ```sh
//! THALWEG_DATA=/path/to/data cargo run --release -p thalweg-client --example ask -- "Why is the sky blue?"
//! ```

use std::io::Write as _;

use thalweg_client::{AskRequest, Client, ClientError, Part};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "Why is the sky blue?".into());
    let data = std::env::var_os("THALWEG_DATA").unwrap_or_else(|| "data".into());
    let client = Client::builder().local(data).name("example-ask/1").connect().await?;

    let mut answer = client.ask(AskRequest::prompt(prompt)).await?;
    while let Some(part) = answer.next().await? {
        match part {
            Part::Piece(piece) => print!("{}", piece.text),
            Part::Rewound { to } => print!("\n[what followed token {to} is told anew]\n"),
        }
        // Nothing to do about a terminal that went away.
        let _ = std::io::stdout().flush();
    }
    let finished = answer.finished().expect("next() gave None");
    println!("\n[{}, {} tokens]", finished.reason.as_str(), finished.usage.completion_tokens);
    Ok(())
}
