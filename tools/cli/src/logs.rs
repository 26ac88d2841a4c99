//! The log of a node that does not run, as `thalweg doctor` and backups look at it. All calls of the journal are here.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use thalweg_domain::fact::{ChannelFact, UserFact};
use thalweg_domain::record::{Event, Message, Record};
use thalweg_journal::LogError;
use thalweg_journal::segment::{SEGMENTS, Salvaged, Segment, SegmentName, VerifyReport, WAL_FILES, salvage, verify};
use thalweg_journal::wal::{End, scan};
use thalweg_node::disk::FileDisk;
use thalweg_node::gate;
use thalweg_node::identity::DataDir;
use thalweg_protocol::op::DeliveryKind;

use crate::command::admin::manifest::write_whole;
use crate::failure::{During as _, Failure, output};
use crate::keys::{KEYS, carried};
use crate::timestamp::rfc3339;

fn disk(log: &Path) -> Result<FileDisk, Failure> {
    FileDisk::existing(log).map_err(|error| Failure::failed(error.to_string()))
}

fn failed(log: &Path, error: &LogError) -> Failure {
    Failure::failed(format!("{}: {error}", log.display()))
}

/// Checks every byte of a segment of the log in this directory; gives how many messages it has.
pub(crate) fn verify_segment(log: &Path, name: SegmentName) -> Result<u64, Failure> {
    let segment = Segment::open(&disk(log)?, name).map_err(|error| failed(log, &error))?;
    segment.verify().map(|verified| verified.messages).map_err(|error| failed(log, &error))
}

/// Checks all of the log in this directory, and changes nothing.
pub(crate) fn verify_all(log: &Path) -> Result<VerifyReport, Failure> {
    verify(&disk(log)?).map_err(|error| failed(log, &error))
}

/// How records are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Show {
    /// One JSON object a line.
    pub(crate) json: bool,
    /// Also what was written, which is nobody's business but the users'.
    pub(crate) bodies: bool,
}

/// Prints the records of a file of the write-ahead log, or the messages of a segment.
pub(crate) fn show(file: &Path, how: Show, out: &mut impl Write) -> Result<(), Failure> {
    let strange = || {
        let text = "is no file of a log; give one of DATA/log/wal/*.wal or DATA/log/segments/*.seg";
        Failure::usage(format!("{} {text}", file.display()))
    };
    let file = file.canonicalize().map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
    let name = file.file_name().and_then(|name| name.to_str()).ok_or_else(strange)?;
    let directory = file.parent().and_then(Path::file_name).and_then(|name| name.to_str()).ok_or_else(strange)?;
    let log = file.parent().and_then(Path::parent).ok_or_else(strange)?;
    match directory {
        WAL_FILES if name.ends_with(".wal") => show_wal(log, &format!("{WAL_FILES}/{name}"), how, out),
        SEGMENTS => show_segment(log, name.parse().map_err(|_| strange())?, how, out),
        _ => Err(strange()),
    }
}

fn show_wal(log: &Path, path: &str, how: Show, out: &mut impl Write) -> Result<(), Failure> {
    let mut written = Ok(());
    let scanned = scan(&disk(log)?, path, None, &mut |raw| {
        let record = raw.decode()?;
        if written.is_ok() {
            written = put(out, how, &record_line(&record, raw.offset, how));
        }
        Ok(())
    });
    written.map_err(|error| output(&error))?;
    let scan = scanned.map_err(|error| failed(log, &error))?;
    let end = match &scan.end {
        End::Clean => "clean".to_owned(),
        End::Torn { offset, bytes } => format!("torn at offset {offset}: {bytes} bytes were never synced"),
        End::Damaged { offset, what, .. } => format!("damaged at offset {offset}: {what}"),
    };
    let line = json!({
        "file": path, "core": scan.core.0, "generation": scan.generation, "epoch": scan.epoch.0, "batches": scan.batches,
        "records": scan.records, "ends_at": scan.intact.offset, "end": end,
    });
    put(out, how, &line).map_err(|error| output(&error))?;
    scan.check().map_err(|error| failed(log, &error))
}

fn show_segment(log: &Path, name: SegmentName, how: Show, out: &mut impl Write) -> Result<(), Failure> {
    let segment = Segment::open(&disk(log)?, name).map_err(|error| failed(log, &error))?;
    let mut written = Ok(());
    let read = segment.for_each(&mut |partition, channel, message| {
        let mut line = json!({ "partition": partition.0, "channel_id": channel.0 });
        add(&mut line, message_line(&message, how));
        if written.is_ok() {
            written = put(out, how, &line);
        }
    });
    written.map_err(|error| output(&error))?;
    let covers: Vec<_> = segment
        .covers()
        .iter()
        .map(|cover| json!({ "core": cover.core.0, "from": cover.from, "to": cover.to }))
        .collect();
    let line = json!({
        "file": name.path(), "bytes": segment.bytes(), "messages": segment.messages(), "covers": covers,
    });
    put(out, how, &line).map_err(|error| output(&error))?;
    read.map_err(|error| failed(log, &error))
}

/// One object a line, or its fields as `name=value`.
fn put(out: &mut impl Write, how: Show, line: &Value) -> io::Result<()> {
    let Some(fields) = line.as_object().filter(|_| !how.json) else { return writeln!(out, "{line}") };
    let fields: Vec<_> = fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| match value.as_str() {
            Some(text) if !text.contains([' ', '\n']) => format!("{name}={text}"),
            _ => format!("{name}={value}"),
        })
        .collect();
    writeln!(out, "{}", fields.join(" "))
}

fn add(line: &mut Value, more: Value) {
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
}

/// A fact of a channel, without what users wrote.
fn channel_fact(fact: &ChannelFact) -> Value {
    match fact {
        ChannelFact::Info(info) => json!({
            "fact": "info", "kind": info.kind.as_str(), "post": info.post.as_str(), "by": info.by.as_str(),
            "topic_bytes": info.topic.len(),
        }),
        ChannelFact::Member { user, member } => json!({
            "fact": "member", "user": user.as_str(), "role": member.as_ref().map(|member| member.role.as_str()),
            "by": member.as_ref().map(|member| member.by.as_str()),
        }),
        ChannelFact::Reading { user, reading } => json!({
            "fact": "reading", "user": user.as_str(), "position": reading.position.0, "number": reading.number,
        }),
        ChannelFact::Redacted { position } => json!({ "fact": "redacted", "position": position.0 }),
        ChannelFact::Snapshot(snapshot) => json!({
            "fact": "snapshot", "position": snapshot.position.0, "parts": snapshot.parts,
        }),
    }
}

/// A fact of a user, without what they wrote.
fn user_fact(fact: &UserFact) -> Value {
    match fact {
        UserFact::Profile(_) => json!({ "fact": "profile" }),
        UserFact::Seen { at_us } => json!({ "fact": "seen", "at": rfc3339(*at_us) }),
        UserFact::Forgotten => json!({ "fact": "forgotten" }),
    }
}

/// What a record says, without what users wrote.
fn record_line(record: &Record, offset: u64, how: Show) -> Value {
    let mut line = json!({
        "offset": offset, "partition": record.partition.0, "lsn": record.lsn.0, "epoch": record.epoch.0,
        "ts": rfc3339(record.timestamp_us),
    });
    let event = match &record.event {
        Event::ChannelCreated { channel, settings, facts } => json!({
            "event": "channel_created", "tenant": channel.tenant.as_str(), "channel": channel.channel.as_str(),
            "durability": settings.durability.as_str(), "keep_messages": settings.history_messages,
            "facts": facts.iter().map(channel_fact).collect::<Vec<_>>(),
        }),
        Event::ChannelDeleted { channel, id } => json!({
            "event": "channel_deleted", "tenant": channel.tenant.as_str(), "channel": channel.channel.as_str(),
            "channel_id": id.0,
        }),
        Event::Published(_) => json!({ "event": "published" }),
        Event::GenerationStarted { generation, request, .. } => json!({
            "event": "generation_started", "generation": generation.to_string(), "tenant": request.tenant.as_str(),
            "user": request.user.as_str(), "model": request.model.as_str(),
        }),
        Event::GenerationTokens { generation, index, tokens, text, .. } => {
            let shown = how.bodies.then(|| String::from_utf8_lossy(text).into_owned());
            json!({
                "event": "generation_tokens", "generation": generation.to_string(), "index": index,
                "tokens": tokens.len(), "bytes": text.len(), "text": shown,
            })
        }
        Event::GenerationFinished { generation, .. } => {
            json!({ "event": "generation_finished", "generation": generation.to_string() })
        }
        Event::GenerationDeleted { generation } => {
            json!({ "event": "generation_deleted", "generation": generation.to_string() })
        }
        Event::ChannelChanged { channel, id, facts, .. } => json!({
            "event": "channel_changed", "tenant": channel.tenant.as_str(), "channel": channel.channel.as_str(),
            "channel_id": id.0, "facts": facts.iter().map(channel_fact).collect::<Vec<_>>(),
        }),
        Event::UserChanged { tenant, user, facts } => json!({
            "event": "user_changed", "tenant": tenant.as_str(), "user": user.as_str(),
            "facts": facts.iter().map(user_fact).collect::<Vec<_>>(),
        }),
    };
    add(&mut line, event);
    if let Some(posting) = record.event.posting() {
        add(
            &mut line,
            json!({
                "tenant": posting.channel.tenant.as_str(), "channel": posting.channel.channel.as_str(),
                "channel_id": posting.id.0,
            }),
        );
        add(&mut line, message_line(&posting.message, how));
    }
    line
}

/// What is known of a message, without what it says.
fn message_line(message: &Message, how: Show) -> Value {
    let kind = match message.kind {
        DeliveryKind::Message => "message",
        DeliveryKind::Tokens => "tokens",
        DeliveryKind::GenerationStarted => "started",
        DeliveryKind::GenerationEnded => "ended",
        DeliveryKind::Edit => "edit",
        DeliveryKind::Redaction => "redaction",
        DeliveryKind::Reaction => "reaction",
        DeliveryKind::Unreaction => "unreaction",
        DeliveryKind::Membership => "membership",
        DeliveryKind::Info => "info",
        DeliveryKind::Update => "update",
        DeliveryKind::Snapshot => "snapshot",
        DeliveryKind::Version => "version",
    };
    json!({
        "position": message.position.0, "kind": kind, "user": message.user.as_str(),
        "session": message.session.to_string(), "sequence": message.sequence.0, "body_bytes": message.body.len(),
        "body": how.bodies.then(|| String::from_utf8_lossy(&message.body).into_owned()),
    })
}

/// Saves what is intact of the log of the data directory `data` into a new one, with the keys of its node; gives what to say.
/// Nothing of `data` is changed.
pub(crate) fn salvage_to(data: &Path, to: &Path, json: bool) -> Result<String, Failure> {
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::failed(format!("{} is not empty; name a directory to make", to.display())));
    }
    let _lock = DataDir::open(to).map_err(|error| Failure::failed(error.to_string()))?;
    let new = FileDisk::open(&to.join("log"), Duration::ZERO).map_err(|error| Failure::failed(error.to_string()))?;
    let mut salvaged = salvage(&disk(&data.join("log"))?, &new).map_err(|error| failed(data, &error))?;
    for file in KEYS {
        let content = fs::read(data.join(file)).map_err(|error| error.to_string());
        match content.and_then(|content| carried(file, content)) {
            Ok(content) => write_whole(&to.join(file), &content)?,
            Err(why) => salvaged.lost.push(format!("{file}: {why}; a node that starts makes a new one")),
        }
    }
    for file in gate::files(data).during(data.display())? {
        let directory = to.join(file.parent().unwrap_or(Path::new("")));
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).during(directory.display())?;
        match fs::read(data.join(&file)) {
            Ok(content) => write_whole(&to.join(&file), &content)?,
            Err(why) => salvaged.lost.push(format!("{}: {why}", file.display())),
        }
    }
    let Salvaged { copied, rebuilt, messages, lost } = salvaged;
    if json {
        let line = json!({ "data": to, "copied": copied, "rebuilt": rebuilt, "messages": messages, "lost": lost });
        return Ok(line.to_string());
    }
    let mut text =
        format!("{}: {messages} messages; {copied} segments were intact, {rebuilt} were written anew", to.display());
    for line in &lost {
        text.push_str("\nlost: ");
        text.push_str(line);
    }
    Ok(text)
}
