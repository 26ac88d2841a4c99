"""llama.cpp's own batch API, out of the library that lies in the package `xllamacpp` (prebuilt; `pip install xllamacpp`).

No server, no sampling, no HTTP: tokens at positions of sequences go in, logits come out, as in llama.cpp's `llama-batched-bench`.
The two structs of parameters are filled by llama.cpp itself and are larger here than they are there: only their first fields
(sizes of the context) are named, which have stood where they stand for years.
"""

import ctypes
import pathlib
import sys

_ROOM = 1024


class ModelParams(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_uint8 * _ROOM)]


class ContextParams(ctypes.Structure):
    _fields_ = [
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("opaque", ctypes.c_uint8 * (_ROOM - 16)),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _library():
    try:
        import xllamacpp
    except ImportError:
        sys.exit("xllamacpp is missing: pip install xllamacpp")
    folder = pathlib.Path(xllamacpp.__file__).parent
    library = ctypes.CDLL(str(next(folder.glob("*.so"))))

    def declare(name, result, *arguments):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments

    pointer, i32 = ctypes.c_void_p, ctypes.c_int32
    declare("llama_backend_init", None)
    declare("llama_log_set", None, LOG, pointer)
    declare("llama_model_default_params", ModelParams)
    declare("llama_context_default_params", ContextParams)
    declare("llama_model_load_from_file", pointer, ctypes.c_char_p, ModelParams)
    declare("llama_init_from_model", pointer, pointer, ContextParams)
    declare("llama_set_n_threads", None, pointer, i32, i32)
    declare("llama_model_get_vocab", pointer, pointer)
    declare("llama_vocab_n_tokens", i32, pointer)
    declare("llama_get_memory", pointer, pointer)
    declare("llama_memory_clear", None, pointer, ctypes.c_bool)
    declare("llama_batch_init", Batch, i32, i32, i32)
    declare("llama_decode", i32, pointer, Batch)
    declare("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), pointer, i32)
    declare("llama_tokenize", i32, pointer, ctypes.c_char_p, i32, ctypes.POINTER(i32), i32, ctypes.c_bool, ctypes.c_bool)
    return library, getattr(xllamacpp, "__version__", None) or "of an unknown version"


class Llama:
    """A model and one context: `sequences` sequences of up to `tokens` tokens each, computed by `threads` threads."""

    def __init__(self, path, threads, sequences=1, tokens=1024):
        self.library, self.version = _library()
        self._quiet = LOG(lambda level, text, data: None)
        self.library.llama_log_set(self._quiet, None)
        self.library.llama_backend_init()
        self.model = self.library.llama_model_load_from_file(str(path).encode(), self.library.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = self.library.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * tokens, sequences
        params.n_batch = max(2048, sequences)
        self.context = self.library.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp makes no context of these sizes")
        self.library.llama_set_n_threads(self.context, threads, threads)
        self.vocab = self.library.llama_model_get_vocab(self.model)
        self.vocabulary = self.library.llama_vocab_n_tokens(self.vocab)
        self.batch = self.library.llama_batch_init(params.n_batch, 0, 1)

    def forget(self):
        """Empties the KV memory of all sequences."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), False)

    def tokenize(self, text):
        """Plain text to tokens: no begin token, control tokens taken for text."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 16))()
        count = self.library.llama_tokenize(self.vocab, raw, len(raw), room, len(room), False, False)
        if count < 0:
            sys.exit("llama.cpp cannot tokenise the text")
        return list(room[:count])

    def step(self, rows):
        """Computes `rows` of (sequence, position, token, wants_logits)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for n, (sequence, position, token, wants_logits) in enumerate(rows):
            batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, position, 1
            batch.seq_id[n][0] = sequence
            batch.logits[n] = wants_logits
        failed = self.library.llama_decode(self.context, batch)
        if failed:
            sys.exit(f"llama_decode failed: {failed}")

    def logits(self, row):
        """The logits of a row of the last step, as a ctypes array of `vocabulary` floats."""
        pointer = self.library.llama_get_logits_ith(self.context, row)
        return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * self.vocabulary)).contents
