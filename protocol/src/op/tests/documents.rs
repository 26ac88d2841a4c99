//! What came with documents.

use super::*;
use crate::document::{
    AskInDocument, AwarenessEntry, AwarenessUpdate, DocumentAccess, DocumentForm, DocumentNews, DocumentOp,
    DocumentOperations, OpenDocument, Operations, Place, ReadForm,
};
use crate::ids::ChannelId;
use crate::limits::{AWARENESS_BYTES_MAX, INSTRUCTION_BYTES_MAX, STATE_VECTOR_BYTES_MAX};

fn open(form: DocumentForm, state: &'static [u8], make: bool) -> DocumentOp {
    let (document, state, known) = (name("notes"), Bytes::from_static(state), None);
    DocumentOp::Open(OpenDocument { document, state, form, make, lead: 9, known })
}

fn read(revision: u64, form: ReadForm) -> DocumentOp {
    DocumentOp::Read { document: name("notes"), revision: Position(revision), form, offset: 7 }
}

fn ask_in(place: Place) -> AskInDocument {
    AskInDocument {
        document: name("notes"),
        instruction: "tighten this paragraph".into(),
        model: Some(name("smollm2-135m")),
        place,
        max_tokens: 200,
        temperature: 0.5,
        seed: Some(7),
    }
}

fn awareness() -> Bytes {
    let state = Some(Bytes::from_static(b"{\"user\":{\"name\":\"ada\"}}"));
    AwarenessUpdate { entries: vec![AwarenessEntry { client: 5, clock: 1, state }] }.encode()
}

pub(super) fn client_ops() -> Vec<ClientOp> {
    let (start, end) = (Bytes::from_static(&[0, 5, 3, 0]), Bytes::from_static(&[0, 5, 9, 0]));
    let plain =
        AskInDocument { model: None, seed: None, ..ask_in(Place::Offsets { revision: Position(3), start: 0, end: 5 }) };
    let write = |kind, target, body: Bytes| {
        let post = Post { kind, target: Position(target) };
        let (channel, sequence) = (name("notes"), Sequence(3));
        ClientOp::Publish(Publish { channel, sequence, retry: false, make: false, body, key: 0, post })
    };
    let mut made = create(0, None);
    made.about = ChannelAbout { kind: ChannelKind::Document, ..ChannelAbout::default() };
    let documents = [
        open(DocumentForm::Updates, &[1, 5, 3], true),
        open(DocumentForm::Operations, b"", false),
        read(0, ReadForm::Text),
        read(12, ReadForm::State),
        read(12, ReadForm::Json),
        DocumentOp::Ask(Box::new(ask_in(Place::Anchors { start, end }))),
        DocumentOp::Ask(Box::new(plain)),
        DocumentOp::ShareAwareness { subscription: Subscription(3), update: awareness() },
    ];
    let mut ops: Vec<ClientOp> = documents.map(ClientOp::Document).to_vec();
    ops.extend([
        ClientOp::CreateChannel(made),
        write(PostKind::Update, 0, Bytes::from_static(&[0, 0])),
        write(PostKind::Operations, 9, Operations::new().retain(2).insert("é").delete(3).encode()),
        write(PostKind::Version, 9, Bytes::from_static(b"draft")),
        write(PostKind::Restore, 9, Bytes::new()),
    ]);
    ops
}

/// Those that say which document of a name is meant, which came later.
pub(super) fn known_ops() -> (ClientOp, ServerOp) {
    let DocumentOp::Open(open) = open(DocumentForm::Updates, &[1, 5, 3], false) else { unreachable!("it opens") };
    let (id, vector) = (ChannelId(5), Bytes::from_static(&[1, 5, 3]));
    let (revision, access) = (Position(12), DocumentAccess::Write);
    let opened = DocumentNews::Opened { id, revision, bytes: 900, access, made: false, vector };
    (ClientOp::Document(DocumentOp::Open(OpenDocument { known: Some(id), ..open })), ServerOp::Document(opened))
}

pub(super) fn server_ops() -> Vec<ServerOp> {
    let opened = |access, made| DocumentNews::Opened {
        id: ChannelId(0),
        revision: Position(12),
        bytes: 900,
        access,
        made,
        vector: Bytes::from_static(&[1, 5, 3]),
    };
    let operations = DocumentOperations {
        from: Position(3),
        to: Position(5),
        timestamp_us: 1_700_000_000_000_000,
        user: name("ada"),
        generation: Some(GenerationId(9)),
        own: None,
        operations: Operations::new().insert("tide").encode(),
    };
    let own =
        DocumentOperations { generation: None, own: Some(Sequence(4)), operations: Bytes::new(), ..operations.clone() };
    let news = [
        opened(DocumentAccess::Read, false),
        opened(DocumentAccess::Comment, false),
        opened(DocumentAccess::Write, true),
        DocumentNews::State { revision: Position(12), offset: 4, total: 9, bytes: Bytes::from_static(b"hello") },
        DocumentNews::Operations(operations),
        DocumentNews::Operations(own),
        DocumentNews::Awareness { update: awareness() },
    ];
    let delivery = |kind, target| {
        ServerOp::Delivery(Delivery {
            position: Position(8),
            timestamp_us: 1,
            kind,
            user: name("ada"),
            generation: None,
            body: Bytes::from_static(&[0, 0]),
            key: 0,
            context: Context { target: Position(target), number: 3, ..Context::default() },
        })
    };
    let mut ops: Vec<ServerOp> = news.map(ServerOp::Document).to_vec();
    ops.extend([
        delivery(DeliveryKind::Update, 5),
        delivery(DeliveryKind::Snapshot, 7),
        delivery(DeliveryKind::Version, 6),
        ServerOp::Ended(Reject::new(RejectCode::DocumentTooLarge, "4 MiB")),
    ]);
    ops
}

#[test]
fn what_is_beyond_a_limit_of_documents_is_refused() {
    let check = |op: DocumentOp, word: &str| {
        let reject = ClientOp::decode(&ClientOp::Document(op).encode()).expect_err("beyond a limit");
        assert!(matches!(reject.code, RejectCode::ParameterInvalid | RejectCode::FrameInvalid), "{reject}");
        assert!(reject.message.contains(word), "{reject} does not name {word}");
    };
    let DocumentOp::Open(opening) = open(DocumentForm::Updates, b"", true) else { unreachable!("it opens") };
    check(DocumentOp::Open(OpenDocument { state: vec![0; STATE_VECTOR_BYTES_MAX + 1].into(), ..opening }), "state");
    let update = vec![0; AWARENESS_BYTES_MAX + 1].into();
    check(DocumentOp::ShareAwareness { subscription: Subscription(1), update }, "update");
    let place = |start, end| Place::Offsets { revision: Position(0), start, end };
    let asking = |change: &dyn Fn(&mut AskInDocument)| {
        let mut ask = ask_in(place(1, 2));
        change(&mut ask);
        DocumentOp::Ask(Box::new(ask))
    };
    check(asking(&|ask| ask.instruction = "x".repeat(INSTRUCTION_BYTES_MAX + 1)), "instruction");
    check(asking(&|ask| ask.temperature = 11.0), "temperature");
    check(asking(&|ask| ask.temperature = f32::NAN), "temperature");
    check(asking(&|ask| ask.max_tokens = u32::MAX), "max_tokens");
    check(asking(&|ask| ask.place = place(3, 2)), "start_offset");
    let (start, end) = (Bytes::from_static(&[1]), Bytes::new());
    check(asking(&|ask| ask.place = Place::Anchors { start: start.clone(), end: end.clone() }), "start and end");
    check(asking(&|ask| ask.place = Place::Anchors { start: vec![1; 300].into(), end: start.clone() }), "start");
}

proptest! {
    #[test]
    fn a_damaged_frame_about_documents_is_read_or_refused(
        which in 0usize..17, at in any::<prop::sample::Index>(), byte: u8,
    ) {
        let frames: Vec<Bytes> =
            client_ops().iter().map(ClientOp::encode).chain(server_ops().iter().map(ServerOp::encode)).collect();
        let mut frame = frames[which % frames.len()].to_vec();
        let at = at.index(frame.len());
        frame[at] = byte;
        let frame = Bytes::from(frame);
        let _ = (ClientOp::decode(&frame), ServerOp::decode(&frame));
    }
}
