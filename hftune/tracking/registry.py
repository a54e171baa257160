"""The model registry: trained models as immutable, numbered versions that are what they were."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError, ConfigurationError
from ..utils.files import checked_name
from . import registry_files
from .contents import ContentStore, Garbage
from .registry_entry import add_version, checked_facts, find_parent
from .registry_files import changing
from .registry_find import (
    by_clean_name,
    by_metric,
    direction_of,
    events_of,
    find_record,
    find_records,
    infos,
    lineage,
    metrics_of,
    order_of,
    search_records,
)
from .registry_gates import UNSET, RegistryError, check_expected, move_alias
from .run_values import clean_text
from .store import Store
from .tables import aliases, models

__all__ = ["ModelRegistry", "RegistryError"]


class ModelRegistry:
    """Registers models, finds them and hands them out with every byte as it was.

    A version is a name, a number and the content of a model folder. It never changes; the same
    content under the same name is the same version. Models are referred to by their id
    (``"model_20250128_001"``), or as ``"name"`` (the newest version), ``"name:3"`` or
    ``"name@alias"``.

    Args:
        store (Store, *optional*): Defaults to the one that ``HFTUNE_TRACKING_URL`` names, else to
            SQLite in ``HFTUNE_HOME``.
        models_dir (path, *optional*): Where the models' files are kept. Defaults to
            ``HFTUNE_MODELS_DIR``, else to ``models`` in ``HFTUNE_HOME``. A team that shares the
            folder shares the store as well.

    Attributes:
        store (Store): The database.
        contents (ContentStore): The files.

    Example:
        >>> registry = ModelRegistry()
        >>> model_id = registry.register_model(
        ...     name="kobart", architecture="kobart", checkpoint="gogamza/kobart-base-v2",
        ...     config=config, performance={"rouge1_f1": 0.45}, training_info={"epochs": 3},
        ...     file_path="out/best", experiment_id="exp_20250128_001",
        ... )
        >>> registry.promote("kobart", 1, "production")
        >>> model = AutoModel.from_pretrained(registry.folder("kobart@production"))
    """

    def __init__(
        self, store: Store | None = None, models_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self.store = store or Store()
        self.contents = ContentStore(models_dir)

    def register_model(
        self,
        name: str,
        architecture: str,
        checkpoint: str | None,
        config: Mapping[str, Any],
        performance: Mapping[str, float],
        training_info: Mapping[str, Any],
        file_path: str | os.PathLike[str],
        experiment_id: str | None = None,
        *,
        parent_model: str | None = None,
        stage: str | None = None,
        step: int | None = None,
        data_fingerprint: str | None = None,
        metric_directions: Mapping[str, bool] | None = None,
    ) -> str:
        """Registers a saved model as the next version of a name.

        The files are copied. What is registered under the name already keeps its version, id and
        facts; that it came again is in the :meth:`history`.

        Args:
            name (str): At most 128 letters, digits, ``.``, ``_``, ``-`` and spaces.
            architecture (str): For example ``"kobart"``.
            checkpoint (str, *optional*): What the training began with.
            config (mapping): The settings; tokens and passwords are left out.
            performance (mapping): Metrics by name. NaN and infinities are kept, and are last in
                every order.
            training_info (mapping): Anything else about the training.
            file_path (path): The folder of the saved model, or a file.
            experiment_id (str, *optional*): The run that trained it.
            parent_model (str, *optional*): The registered model that the training began with.
                Defaults to the one whose folder ``checkpoint`` or ``config`` names.
            stage (str, *optional*): The run's stage that the model is of.
            step (int, *optional*): Optimizer steps that were done.
            data_fingerprint (str, *optional*): Of the training data; defaults to the run's.
            metric_directions (mapping, *optional*): True for each metric of which higher is better,
                False for lower, where that is not generally known.

        Returns:
            The id, ``model_YYYYMMDD_NNN``.

        Raises:
            ConfigurationError: If an argument is wrong, or the files are no saved model.
            StoreError: If there is no room for it, or the registry cannot be written.
        """
        facts = checked_facts(
            name=name,
            architecture=architecture,
            checkpoint=checkpoint,
            config=config,
            performance=performance,
            training_info=training_info,
            experiment_id=experiment_id,
            stage=stage,
            step=step,
            data_fingerprint=data_fingerprint,
            metric_directions=metric_directions or {},
        )
        with self.store.read() as connection:
            if parent_model is not None:
                parent_model = find_record(connection, parent_model)["model_id"]
            else:
                parent_model = find_parent(connection, self.contents, facts)
        facts["parent_model"] = parent_model
        with self.contents.holding():  # until the version refers to it
            content = self.contents.put(file_path)
            with changing(self.store, self.contents) as change:
                return add_version(change, facts, content)

    # Looking

    def get_model_info(self, ref: str) -> dict[str, Any]:
        """Returns what is known of a model.

        Args:
            ref (str): The model.

        Returns:
            ``model_id``, ``name``, ``version``, ``architecture``, ``checkpoint``, ``config``,
            ``performance``, ``training_info``, ``file_path`` (its registered folder; see
            :meth:`folder`), ``experiment_id``, ``created`` (ISO 8601, UTC), ``digest``, ``bytes``,
            ``left_out``, ``aliases``, ``parent_model`` and ``lineage``: ``data_fingerprint``,
            ``experiment_id``, ``stage``, ``step``, ``checkpoint`` and ``ancestors`` (parent first).

        Raises:
            ConfigurationError: If there is no such model.
        """
        with self.store.read() as connection:
            record = find_record(connection, ref)
            [info] = infos(connection, self.contents, [record])
            info["lineage"]["ancestors"] = lineage(connection, record)
        return info

    def get_best_models(
        self, metric: str, limit: int | None = 5, *, greater_is_better: bool | None = None
    ) -> list[dict[str, Any]]:
        """Returns the models that are best in a metric, the best first.

        Args:
            metric (str): As it was registered.
            limit (int, *optional*): How many at the most, None for all. Defaults to 5.
            greater_is_better (bool, *optional*): Its direction, where that is not known.

        Returns:
            As :meth:`get_model_info`, but for the ancestors. What is not finite comes last.

        Raises:
            ConfigurationError: If no model has the metric, or its direction is not known.
        """
        metric = clean_text(metric)
        with self.store.read() as connection:
            order = by_metric(metric, direction_of(connection, metric, greater_is_better))
            records = search_records(connection, order, measured=True, limit=limit)
            return infos(connection, self.contents, records)

    def search_models(
        self,
        architecture: str | None = None,
        min_performance: Mapping[str, float] | None = None,
        *,
        name: str | None = None,
        experiment_id: str | None = None,
        parent_model: str | None = None,
        alias: str | None = None,
        sort: str = "created",
        latest: bool = False,
        limit: int | None = None,
        metric_directions: Mapping[str, bool] | None = None,
    ) -> list[dict[str, Any]]:
        """Returns the models that fulfil all conditions.

        Args:
            architecture (str, *optional*): As it was registered.
            min_performance (mapping, *optional*): At least this good, in the metric's own
                direction: ``{"rouge1_f1": 0.4, "loss": 1.5}`` is at least 0.4 and at most 1.5.
            name (str, *optional*): All versions of it.
            experiment_id (str, *optional*): Trained by this run.
            parent_model (str, *optional*): Trained from this model.
            alias (str, *optional*): That an alias of this name points to.
            sort (str): ``"created"`` (the newest first), ``"size"`` (the largest first),
                ``"name"``, or a metric: the best first; infinities, NaN and models without it come
                last. After a dash (``"-loss"``) the largest first, whatever is better. Defaults to
                ``"created"``.
            latest (bool): Of each name only the newest version that fulfils the rest. Defaults to
                False.
            limit (int, *optional*): How many at the most. Defaults to all.
            metric_directions (mapping, *optional*): Directions of metrics, where not known.

        Returns:
            As :meth:`get_model_info`, but for the ancestors.

        Raises:
            ConfigurationError: If no model has a metric, or its direction is not known.
        """
        with self.store.read() as connection:
            if parent_model is not None:
                parent_model = find_record(connection, parent_model)["model_id"]
            equal = {
                "architecture": architecture,
                "name": name,
                "experiment_id": experiment_id,
                "parent_model": parent_model,
            }
            declared = by_clean_name(metric_directions)
            bounds = {
                metric: (float(bound), direction_of(connection, metric, declared.get(metric)))
                for metric, bound in by_clean_name(min_performance).items()
            }
            records = search_records(
                connection,
                order_of(connection, sort, declared),
                equal=equal,
                alias=alias,
                bounds=bounds,
                latest=latest,
                limit=limit,
            )
            return infos(connection, self.contents, records)

    def compare_models(self, refs: Sequence[str]) -> dict[str, list[float | None]]:
        """Returns the metrics of several models: ``{metric: [of the first, of the second, ...]}``.

        Args:
            refs (sequence of str): The models. A metric that one of them lacks is None there.

        Raises:
            ConfigurationError: If there is no such model.
        """
        with self.store.read() as connection:
            found = [metrics_of(record) for record in find_records(connection, refs)]
        metrics = dict.fromkeys(metric for numbers in found for metric in numbers)
        return {metric: [numbers.get(metric) for numbers in found] for metric in metrics}

    def history(self, name: str) -> list[dict[str, Any]]:
        """Returns what happened to the versions of a name, the oldest first.

        Args:
            name (str): Of models; they may be deleted by now.

        Returns:
            For each event ``time`` (ISO 8601, UTC), ``who`` (user@host), ``kind`` (``registered``,
            ``registered again``, ``promoted``, ``alias removed``, ``deleted``), ``model_id``,
            ``version`` and what belongs to its kind.

        Raises:
            ConfigurationError: If nothing was ever registered under the name.
        """
        with self.store.read() as connection:
            return events_of(connection, name)

    # Changing

    def promote(
        self,
        name: str,
        version: int,
        alias: str,
        expect: int | None = UNSET,
        must_beat: str | None = None,
        metric: str | None = None,
        min_metric: Mapping[str, float] | None = None,
        *,
        greater_is_better: bool | None = None,
        metric_directions: Mapping[str, bool] | None = None,
    ) -> dict[str, Any]:
        """Has an alias point to a version, if everything that is asked for holds.

        The version's files are verified first.

        Args:
            name (str): Of the model.
            version (int): To promote.
            alias (str): For example ``"production"``.
            expect (int, *optional*): The version that the alias points to now, None for none: it is
                moved only if nobody moved it in between. Not looked at by default.
            must_beat (str, *optional*): An alias whose version it must be better than. While the
                alias that is being set is free, there is nothing to beat.
            metric (str, *optional*): In which; needed with ``must_beat``.
            min_metric (mapping, *optional*): How good it must be at least, in each metric's own
                direction.
            greater_is_better (bool, *optional*): Direction of ``metric``, where not known.
            metric_directions (mapping, *optional*): Directions of all metrics, where not known.

        Returns:
            The model, as :meth:`get_model_info`.

        Raises:
            RegistryError: If a gate or the expectation does not hold; the alias stays.
            CheckpointError: If the version's files are damaged.
            ConfigurationError: If there is no such model or alias, or a direction is not known.
        """
        alias = checked_name(unicodedata.normalize("NFC", alias), "alias")
        if (must_beat is None) != (metric is None):
            raise ConfigurationError("promote: must_beat and metric are given together, or neither")
        ref = f"{name}:{version}"
        declared = by_clean_name(metric_directions)
        if metric is not None:
            metric = clean_text(metric)
            if greater_is_better is not None:
                declared[metric] = greater_is_better
        self.folder(ref)
        with changing(self.store, self.contents) as change:
            move_alias(
                change,
                ref,
                alias,
                expect=expect,
                must_beat=must_beat,
                metric=metric,
                min_metric=by_clean_name(min_metric),
                declared=declared,
            )
        return self.get_model_info(ref)

    def remove_alias(self, name: str, alias: str, expect: int = UNSET) -> None:
        """Removes an alias; the version that it points to stays.

        Args:
            name (str): Of the model.
            alias (str): The alias.
            expect (int, *optional*): The version that it points to now, as for :meth:`promote`.

        Raises:
            RegistryError: If it points elsewhere.
            ConfigurationError: If there is no such alias.
        """
        with changing(self.store, self.contents) as change:
            model = find_record(change.connection, f"{name}@{alias}")
            alias = clean_text(alias)
            check_expected(f"{model['name']}@{alias}", model, expect)
            change.connection.execute(
                aliases.delete().where(aliases.c.name == model["name"], aliases.c.alias == alias)
            )
            change.happened("alias removed", model, alias=alias)

    def delete_model(self, ref: str) -> str:
        """Deletes a version that nothing needs; :meth:`gc` then frees its files.

        Args:
            ref (str): The model.

        Returns:
            Its id.

        Raises:
            RegistryError: If an alias points to it, or another model was trained from it.
            ConfigurationError: If there is no such model.
        """
        import sqlalchemy as sa

        with changing(self.store, self.contents) as change:
            model = find_record(change.connection, ref)
            pointing = change.connection.execute(
                sa.select(aliases.c.alias).where(aliases.c.model_id == model["model_id"])
            ).scalars()
            children = change.connection.execute(
                sa.select(models.c.id).where(models.c.parent_model == model["model_id"])
            ).scalars()
            needed = [f"the alias {alias} points to it" for alias in sorted(pointing)]
            needed += [f"{child} was trained from it" for child in sorted(children)]
            if needed:
                raise RegistryError(
                    f"{model['name']}:{model['version']} ({model['model_id']}) is in use: "
                    f"{'; '.join(needed)}. Move the alias or delete the other model first."
                )
            change.drop(model)
            change.happened("deleted", model, digest=model["digest"])
        return model["model_id"]

    # Files

    def folder(self, ref: str) -> Path:
        """Returns a model's folder to load from, after every byte in it was verified.

        Args:
            ref (str): The model.

        Raises:
            CheckpointError: If it is damaged.
            ConfigurationError: If there is no such model.
        """
        with self.store.read() as connection:
            model = find_record(connection, ref)
        if problems := self.contents.verify(model["digest"]):
            raise CheckpointError(
                f"{model['name']}:{model['version']} ({model['model_id']}) is damaged: "
                f"{'; '.join(problems)}. Registering the same files again under any name mends it."
            )
        return self.contents.folder(model["digest"])

    def verify(
        self,
        refs: str | Sequence[str] | None = None,
        *,
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> dict[str, list[str]]:
        """Reads and hashes the files of models; a content that several have once.

        Args:
            refs (str or sequence of str, *optional*): The models. Defaults to all models.
            on_bytes (callable, *optional*): Called now and then with how many bytes are done, and
                how many there are; from several threads, one at a time.

        Returns:
            What is wrong by model id, an empty list for a whole one.

        Raises:
            ConfigurationError: If there is no such model.
        """
        import sqlalchemy as sa

        with self.store.read() as connection:
            if refs is None:
                columns = sa.select(models.c.id, models.c.digest, models.c.bytes)
                rows = connection.execute(columns.order_by(models.c.created, models.c.id)).all()
            else:
                records = find_records(connection, [refs] if isinstance(refs, str) else refs)
                rows = [(one["model_id"], one["digest"], one["bytes"]) for one in records]
        sizes = {digest: size for _, digest, size in rows}
        report = on_bytes or (lambda done, total: None)
        before, total, found = 0, sum(sizes.values()), {}
        for digest, size in sizes.items():
            found[digest] = self.contents.verify(
                digest, lambda done, before=before: report(before + done, total)
            )
            before += size
            report(before, total)  # of a damaged one not everything was read
        result = {model_id: found[digest] for model_id, digest, _ in rows}
        if refs is None:
            for model_id in registry_files.read_records(self.contents.root)[0]:
                unknown = "the database does not know it: hftune models reindex"
                result.setdefault(model_id, [unknown])
        return result

    def export(self, ref: str, target: str | os.PathLike[str]) -> Path:
        """Copies a model's files to a folder of its own; see :meth:`ContentStore.export`.

        Args:
            ref (str): The model.
            target (path): A folder that does not exist or is empty.
        """
        with self.store.read() as connection:
            digest = find_record(connection, ref)["digest"]
        return self.contents.export(digest, target)

    def gc(self, *, dry_run: bool = False) -> Garbage:
        """Removes the files of deleted models and of registrations that did not end.

        What a record in the models' folder refers to stays, even if the database does not know it:
        it may be another's. So does what another user registered; see :class:`Garbage`.

        Args:
            dry_run (bool): Only say what would be removed. Defaults to False.

        Raises:
            StoreError: If a registration is under way.
            CheckpointError: If a model's manifest is damaged.
        """
        import sqlalchemy as sa

        def used() -> Iterable[str]:
            with self.store.read() as connection:
                digests = set(connection.execute(sa.select(models.c.digest)).scalars())
            records, problems = registry_files.read_records(self.contents.root)
            if problems:
                raise CheckpointError("; ".join(problems))
            return digests | {record["digest"] for record in records.values()}

        return self.contents.gc(used, dry_run=dry_run)

    def reindex(self) -> dict[str, Any]:
        """Adds to the database what the files in the models' folder know and it does not.

        A database that was lost is built again: versions, events, aliases. What the database has is
        right and stays; records that the folder lacks are written.

        Returns:
            ``models`` (ids that were added), ``events`` (how many were) and ``problems``.
        """
        return registry_files.reindex(self.store, self.contents)
