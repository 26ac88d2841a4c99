//! `bench tokens`: concurrent questions to a model, over QUIC or HTTP; some readers may stop reading for a while.
//!
//! What is asked ([`questions`]) and what is counted ([`book`]) is the same for both ways; [`quic`] and [`http`] carry it.

mod answer;
mod book;
mod chat_lengths;
mod http;
mod questions;
mod quic;

use crate::cli::{Context, TokensArgs};
use crate::error::LoadError;
use crate::report::Row;

pub(crate) fn run(args: &TokensArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    let all = args.concurrency;
    if all == 0 || args.stall >= all {
        let text = format!("{} of {all} readers cannot stall: one at least must read on", args.stall);
        return Err(LoadError::Usage(text));
    }
    if args.stall + args.other >= all && args.other > 0 {
        let (stall, other) = (args.stall, args.other);
        let text =
            format!("{stall} stalled readers and {other} of another tenant leave nobody of {all} to compare with");
        return Err(LoadError::Usage(text));
    }
    if args.other > 0 && args.other_token.is_none() {
        return Err(LoadError::Usage(format!("{} questions of another tenant need its --other-token", args.other)));
    }
    match &args.http {
        Some(server) => http::run(args, server, context),
        None => quic::run(args, context),
    }
}
