"""Changes of data_pipelines."""

from .mutation import mutate

DATA_PIPELINES = (
    *mutate(
        "data_pipelines/encode/splits.py",
        "test_splits.py",
        # The documents of another part of the hash are for validation.
        ("digest()[:8]", "digest()[8:16]"),
        # The validation fraction is for training.
        ("return points < self.fraction", "return points > self.fraction"),
        # The last of the permutation are drawn.
        (".permutation(total)[:chosen]", ".permutation(total)[-chosen:]"),
        # A document that lies over the cut is for training only.
        ("if 0 < left < length:", "if False:"),
    ),
    *mutate(
        "data_pipelines/encode/encoder.py",
        "test_encoder.py test_journal.py::test_prepare_continues_after_any_batch",
        # A run that continues loses a unit.
        ("[Unit](), 0, start", "[Unit](), 0, start + 1"),
        # A run that continues writes the first units again.
        ("islice(units, start, None)", "islice(units, 0, None)"),
    ),
    *mutate(
        "data_pipelines/encode/encoder.py",
        "test_encoder.py",
        # Every piece of a document begins with the end-of-text id.
        ("new = [before, part] if begins else [part]", "new = [before, part]"),
        # Blank documents have no number.
        ("            number += piece.ends", "                number += piece.ends"),
        # Every piece is counted as a document.
        ('starts[parts["begins"]]', "starts"),
        # Tokens of validation are written to training, too.
        ('self.tokens[np.repeat(mask, self.parts["tokens"])]', "self.tokens"),
        # Parts of a long document are one token too long.
        ("self.max_tokens - len(before)", "self.max_tokens"),
        # The rest of a long document is dropped.
        ("range(0, len(ids), length)", "range(0, len(ids) - length + 1, length)"),
    ),
    *mutate(
        "data_pipelines/encode/pieces.py",
        "test_pieces.py",
        # A document is cut before any white space, where a token may cross.
        ("%b(?= )|", r"%b(?=\s)|"),
    ),
    *mutate(
        "data_pipelines/output/shard_writer.py",
        "test_shard_writer.py",
        # Documents begin where they do within a call.
        ('"documents", starts + self.tokens', '"documents", starts'),
        # What was written after the record stays.
        ("file.truncate(size)", "pass"),
        # Writing continues at the beginning of a file.
        ("file.seek(size)", "file.seek(0)"),
        # Files that are cut short are taken for complete.
        ("return None if self._end < end else", "return"),
    ),
    *mutate(
        "data_pipelines/output/journal.py",
        "test_journal.py",
        # A run continues behind what is in the files.
        ('Progress(content["units"],', 'Progress(content["units"] + 1,'),
        # A run continues the work of another request.
        ("if self._header.items() <= content.items() and", "if"),
    ),
    *mutate(
        "data_pipelines/prepare.py",
        "test_journal.py test_prepare.py",
        # After a kill documents are numbered from 0.
        ("documents, notes = done.documents", "documents, notes = 0"),
    ),
    *mutate(
        "data_pipelines/scored_shards.py",
        "test_prepare_chat.py test_prepare_preferences.py",
        # A block that was written is written again after a kill.
        ("units, None)", "max(0, units - 1), None)"),
    ),
    *mutate(
        "data_pipelines/conversations/block_encoder.py",
        "test_prepare_chat.py test_prepare_preferences.py",
        # Conversations without anything scored are kept.
        ("document.loss_mask.any() for document in documents", "True for document in documents"),
        # The loss mask of a document that is cut off is too long.
        ("document.loss_mask[:limit]", "document.loss_mask"),
    ),
    *mutate(
        "data_pipelines/conversations/examples.py",
        "test_prepare_preferences.py",
        # Answers of the prompt are scored.
        ("scored_from=len(prompt)", "scored_from=0"),
        # Pairs of one prompt are on both sides of a split.
        ("Example(find_key(prompt)", "Example(find_key(completions)"),
    ),
)
