"""Changes of gptjax/data."""

from .mutation import mutate

DATA = (
    *mutate(
        "gptjax/data/sequences.py",
        "test_sequences.py",
        # The last row reaches beyond the stream.
        ("max(0, (len(self.stream) - 1) //", "max(0, len(self.stream) //"),
        # Every row skips a token.
        ("return rows * self.context_length", "return rows * self.context_length + 1"),
        # Padding is scored as token 0.
        ("IGNORE_INDEX), IGNORE_INDEX)}", "IGNORE_INDEX), 0)}"),
        # The end of a document is predicted from the beginning of another.
        ("scored[last] &= end is not None and targets[last] == end", "pass"),
        # The first document of a row has the number of padding.
        ("first_of_row[row] + 1, lengths)", "first_of_row[row], lengths)"),
        # The loss mask is of the input, not of the target.
        ("np.arange(1, self.context_length + 1)] == 1", "np.arange(self.context_length)] == 1"),
        # The same in packed rows.
        ("(mask[np.minimum(positions + 1, last)] == 1)", "(mask[positions] == 1)"),
        # Positions count through the documents of a row.
        ("positions = places - np.maximum.accumulate(", "positions = places - 0 * np.maximum.accumulate("),
    ),
    *mutate(
        "gptjax/data/packing.py",
        "test_packing.py",
        # A last document that just fits is dropped.
        ("document_starts + context_length + 1 <= tokens", "document_starts + context_length + 1 < tokens"),
        # A row may begin with a document that the row before has reached.
        ("usable + context_length)", "usable + context_length - 1)"),
        # A piece that just fills a row is not marked as its document's end.
        ("left <= context_length", "left < context_length"),
        # The last piece of a document is as long as a row.
        ("np.minimum(context_length, left), left", "np.full_like(left, context_length), left"),
        # A cropped document is marked as its document's end.
        ("cropped == lengths[pieces]", "cropped <= lengths[pieces]"),
        # The shortest documents are packed first.
        ("np.argsort(-lengths", "np.argsort(lengths"),
        # Groups after the first are packed from the documents of the first.
        ("order.append(begin + np.argsort", "order.append(np.argsort"),
    ),
    *mutate(
        "gptjax/data/row_readers.py",
        "test_loader.py",
        # The seed is not used.
        ("seed=spec.seed", "seed=0"),
        # A component of a mixture skips what the other components read.
        (".read(numbers[own])", ".read(rows[own])"),
        # Passes are counted in whole numbers.
        ("rows / len(self.sequences)", "rows // len(self.sequences)"),
    ),
    *mutate(
        "gptjax/data/epoch_order.py",
        "test_epoch_order.py",
        # All epochs have one order.
        ("= seed_of_epoch(self._seed, epoch,", "= seed_of_epoch(self._seed, 0,"),
        # Seed and epoch are added.
        ("epoch == 0 or epoch_seeds ==", "epoch_seeds !="),
        # The first epoch has another order than before.
        ("if epoch == 0 or epoch_seeds", "if epoch_seeds"),
    ),
    *mutate(
        "gptjax/data/config.py",
        "test_data_config.py::test_mixture_components_read_in_different_orders",
        # All members of a mixture have one order.
        ("(spec.seed + 7919 * i) % 2**32", "spec.seed"),
    ),
    *mutate(
        "gptjax/data/mixture.py",
        "test_mixture.py",
        # A change of weights repeats rows of the components.
        ("self._count(j, int(begin - self._begins[j]))", "self._count(j, int(begin - self._begins[j]) - 1)"),
        # The component furthest ahead is next.
        ("np.argmax(behind)", "np.argmax(-behind)"),
    ),
    *mutate(
        "gptjax/data/loader.py",
        "test_loader.py",
        # A resumed run skips a step.
        ("[step:].map(", "[step + 1 :].map("),
        # A process reads the rows of the first process.
        ("self.spec.first_row(step) + places)", "self.spec.first_row(step) + np.arange(len(places)))"),
        # A process reads the rows of all.
        ("sharding.addressable_devices_indices_map", "sharding.devices_indices_map"),
        # The loss mask of validation is that of the inputs.
        ("mask[start + 1 : start + 1 + count]", "mask[start : start + count]"),
        # Validation drops its last batch where it is not full.
        ("range(0, predicted, per_batch)", "range(0, predicted - per_batch + 1, per_batch)"),
        # A new batch size begins a step late.
        ("batch_schedule) if begin <= step", "batch_schedule) if begin < step or not begin"),
    ),
    *mutate(
        "gptjax/data/batch_size.py",
        "test_loader.py::test_changing_batch_sizes_read_the_same_sequence_of_rows",
        # Rows are counted by micro-batches.
        ("count * batch.size", "count * batch.microbatch"),
    ),
    *mutate(
        "gptjax/data/token_stream.py",
        "test_shards.py test_sequences.py",
        # Positions of an id are those within its file.
        ("begin + start + np.flatnonzero", "start + np.flatnonzero"),
    ),
    *mutate(
        "gptjax/data/shards.py",
        "test_shards.py",
        # 65,536 ids take four bytes.
        ("vocab_size <= 2**16", "vocab_size < 2**16"),
    ),
    *mutate(
        "gptjax/data/splits.py",
        "test_shards.py",
        # Any name that contains a split's belongs to it.
        ('isdisjoint(re.split(r"[^A-Za-z]+", name))', "isdisjoint([split] * (split in name))"),
    ),
    *mutate(
        "gptjax/data/checksums.py",
        "test_checksums.py test_data_verify.py",
        # Hashes are not compared.
        ("if found != listed[name].sha256:", "if not found:"),
        # A file that was read once is never read again.
        ("known.get(name) != state", "name not in known"),
        # The id after the last of the vocabulary is accepted.
        ("largest >= manifest.vocab_size", "largest > manifest.vocab_size"),
        # Empty documents are accepted.
        ("prepend=before) <= 0)", "prepend=before) < 0)"),
    ),
    *mutate(
        "gptjax/data/preferences.py",
        "test_data_preferences.py",
        # Chosen and rejected change places.
        (
            "*self._read_document(2 * index), *self._read_document(2 * index + 1)",
            "*self._read_document(2 * index + 1), *self._read_document(2 * index)",
        ),
    ),
)
