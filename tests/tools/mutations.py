"""Mutations of the code, each of which a test has to kill: see `mutate`."""

from dataclasses import dataclass

ENGINE = ("unit/engine/test_trainer.py", "unit/engine/test_checkpoint.py")
TASKS = ("integration/tasks/test_training.py", "integration/tasks/test_faults.py")
DATA = ("unit/data/test_classification.py", "unit/data/test_rng.py", "unit/data/test_sampler.py")
PROVENANCE = ("unit/runs/test_provenance.py",)
SYNC = ("integration/tracking/test_sync.py", "integration/tracking/test_sender.py")
SENDER = ("integration/tracking/test_sender.py",)
VERIFY = ("integration/verify/test_verify.py", "integration/verify/test_why.py")
REPORT = ("integration/report/test_tables.py", "integration/report/test_report.py")
TRAJECTORY = ("integration/report/test_trajectory.py",)
STATUS = ("integration/report/test_status.py",)
PLAN = ("integration/commands/test_plan.py",)
DOCTOR = ("integration/cluster/doctor/test_doctor.py", "cluster/doctor/test_doctor.py")
TWO_HOSTS = (
    "unit/cluster/doctor/test_file_system.py",
    "integration/cluster/doctor/test_two_hosts.py",
)
PARAMS = (
    "unit/config/test_load.py",
    "unit/config/test_fingerprint.py",
    "integration/dag/test_dag.py",
)
PLUGIN = "workflow/plugins/snakemake-executor-plugin-submitit"
EXECUTOR = tuple(
    f"{PLUGIN}/tests/{name}.py"
    for name in ("unit/test_executor", "local/test_local", "cluster/test_job_failures",
                 "cluster/test_preemption", "cluster/test_reattach")
)  # fmt: skip
PROOF = (
    "integration/proof/test_proof.py",
    "integration/proof/test_interrupt.py",
    "cluster/proof/test_proof.py",
)
DVC = ("integration/versioning/test_dvc.py", "integration/versioning/test_remotes.py")
RELEASE = ("integration/release/test_release.py",)
DETECTION = (
    "unit/detection/test_losses.py", "unit/detection/test_matching.py",
    "unit/detection/test_atss.py", "unit/detection/test_dense.py",
    "unit/detection/test_roi_heads.py", "unit/detection/test_rpn.py",
    "unit/detection/test_pooling.py", "unit/detection/test_denoising.py",
    "unit/evaluation/test_predictions.py", "unit/evaluation/test_coco.py",
    "unit/detection/test_two_stage.py", "unit/detection/test_retinanet.py",
    "unit/detection/test_sparse_rcnn.py", "unit/detection/test_dino.py",
)  # fmt: skip
SEGMENTATION = (
    "unit/evaluation/test_semantic.py", "unit/segmentation/test_inference.py",
    "unit/segmentation/test_upernet.py",
)  # fmt: skip
MODELS = (
    "unit/models/test_plain.py", "unit/models/test_timm.py", "unit/models/test_golden.py",
    "unit/models/test_sync_norm.py",
)  # fmt: skip

CODE = f"{PLUGIN}/src/snakemake_executor_plugin_submitit"


@dataclass(frozen=True)
class Mutation:
    """One change of the code, and the tests that may kill it."""

    name: str
    """The fault that it introduces."""
    area: str
    file: str
    old: str
    """Text that stands once in the file."""
    new: str
    tests: tuple[str, ...]
    """Files below `tests/`, or below the root, the most likely first."""


MUTATIONS = (
    # --- checkpoints -----------------------------------------------------------------------------
    Mutation(
        "the oldest checkpoints are kept in place of the newest", "checkpoints",
        "smt/engine/checkpoint.py",
        "stay = {*paths[:KEEP], *best[:1]}", "stay = {*paths[-KEEP:], *best[:1]}",
        ENGINE[::-1],
    ),
    Mutation(
        "a damaged checkpoint is loaded", "checkpoints", "smt/engine/checkpoint.py",
        "if sha256(path) != CheckpointName.of(path).sha256:", "if not path.stat().st_size:",
        (*ENGINE[::-1], *TASKS[::-1]),
    ),
    Mutation(
        "the best checkpoint is removed", "checkpoints", "smt/engine/checkpoint.py",
        "stay = {*paths[:KEEP], *best[:1]}", "stay = set(paths[:KEEP])",
        ENGINE,
    ),
    Mutation(
        "milestones are removed as others are", "checkpoints", "smt/engine/checkpoint.py",
        "if path not in stay and (name.step, name.epochs) not in kept:", "if path not in stay:",
        ENGINE,
    ),
    Mutation(
        "a milestone does not commit to the lines before it", "checkpoints",
        "smt/runs/milestones.py",
        'if digests["journal"] != before:', "if False:",
        ("unit/runs/test_milestones.py", "integration/replay/test_audit.py"),
    ),
    Mutation(
        "an audit compares nothing", "checkpoints", "smt/replay/stretch.py",
        "is_equal = recorded == again", "is_equal = True",
        ("integration/replay/test_audit.py",),
    ),
    Mutation(
        "the guard's loss statistics are lost at an interruption", "checkpoints",
        "smt/engine/training_state.py",
        'self.loss_statistics = LossStatistics.of(facts["trend"])',
        "self.loss_statistics = LossStatistics()",
        ENGINE,
    ),
    Mutation(
        "losses before an interruption are not in the next record", "checkpoints",
        "smt/engine/training_state.py",
        'self.loss_sum, self.loss_steps = facts["loss_sum"], facts["loss_steps"]',
        "self.loss_sum, self.loss_steps = 0.0, 0",
        ENGINE,
    ),
    Mutation(
        "a file is written over, through the hard links to it", "checkpoints", "smt/runs/atomic.py",
        "temporary.replace(path)", "shutil.copyfile(temporary, path)",
        ("unit/engine/test_checkpoint.py", "unit/datasets/demo/test_digits.py", *DVC),
    ),
    # --- engine ----------------------------------------------------------------------------------
    Mutation(
        "the mean loss is of all steps so far", "engine", "smt/engine/trainer.py",
        "        state.loss_sum, state.loss_steps = 0.0, 0\n", "",
        ENGINE,
    ),
    Mutation(
        "a skipped step leaves its batch in BatchNorm", "engine", "smt/engine/trainer.py",
        "        self.batch_norm.restore(batch_norm)\n", "",
        ENGINE,
    ),
    Mutation(
        "sums over ranks change their order after a start", "engine", "smt/engine/trainer.py",
        "self.buckets_settled = ranks.world_size == 1", "self.buckets_settled = True",
        (*TASKS[::-1], *PROOF),
    ),
    Mutation(
        "BatchNorm's statistics differ from rank to rank", "engine", "smt/engine/trainer.py",
        "            self.batch_norm.average(self.ranks.world_size)\n", "",
        (*ENGINE, *TASKS, "cluster/tasks/test_training.py", *PROOF),
    ),
    Mutation(
        "biases and norms decay", "engine", "smt/engine/optim.py",
        'for _, value in named if value.ndim <= 1], "weight_decay": 0.0}',
        'for _, value in named if value.ndim <= 1], "weight_decay": weight_decay}',
        ("unit/engine/test_optim.py",),
    ),
    Mutation(
        "the rate of a detector drops one step late", "engine", "smt/engine/optim.py",
        "drops = sum(step >= epoch * steps_per_epoch", "drops = sum(step > epoch * steps_per_epoch",
        ("unit/engine/test_optim.py",),
    ),
    Mutation(
        "the signal before a time limit kills a training", "engine", "smt/engine/preempt.py",
        "signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)", "signal.SIGINT, signal.SIGUSR1)",
        TASKS[::-1],
    ),
    Mutation(
        "a stopped training exits as a finished one", "engine",
        "smt/commands/train.py",
        "err=True)\n        sys.exit(EXIT_RESUME)\n", "err=True)\n        sys.exit(0)\n",
        TASKS,
    ),
    Mutation(
        "two trainings of a run at once", "engine", "smt/runs/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB",
        TASKS,
    ),
    Mutation(
        "a run starts from weights that its parent did not export", "engine",
        "smt/tasks/training.py",
        "if not shared_folder.exists(path) or sha256(path) != metrics.weights_sha256:",
        "if not shared_folder.exists(path):",
        ("unit/tasks/test_start.py", *TASKS, "integration/tasks/test_downstream.py"),
    ),
    Mutation(
        "a detector starts from random weights", "engine", "smt/tasks/downstream.py",
        "            start_from_classifier(trunk, layout.weights(parent))\n",
        "            pass\n",
        ("unit/tasks/test_start.py", "integration/tasks/test_downstream.py"),
    ),
    Mutation(
        "fine-tuning starts from random weights", "engine", "smt/tasks/classify.py",
        "            weights.load_state(model, state, source)\n", "",
        ("unit/tasks/test_start.py", *TASKS),
    ),
    Mutation(
        "after an evaluation a classifier stays in evaluation mode", "engine",
        "smt/tasks/classify.py",
        "        self.model.train()\n", "",
        ("unit/tasks/test_classify.py", *TASKS, *PROOF),
    ),
    Mutation(
        "batches are mixed alike in every epoch", "engine", "smt/tasks/classify.py",
        'self._run.seed, "mix", *key\n', 'self._run.seed, "mix", *key[1:]\n',
        ("unit/tasks/test_classify.py", "unit/data/transforms/test_classification.py", *TASKS),
    ),
    # --- sampler and randomness ------------------------------------------------------------------
    Mutation(
        "every interval has the images of the first", "sampler", "smt/data/sampler.py",
        "return infinite_order(self.images, seed, epoch * images, images)",
        "return infinite_order(self.images, seed, 0, images)",
        (*DATA[::-1], "unit/data/transforms/test_segmentation.py"),
    ),
    Mutation(
        "images that are left over in their groups are never seen", "sampler",
        "smt/data/sampler.py",
        "np.concatenate([*shuffled, mixed[full:]])", "np.concatenate(shuffled)",
        DATA[::-1],
    ),
    Mutation(
        "different parts give one seed", "randomness", "smt/data/rng.py",
        "repr(key).encode()", '"".join(map(str, plain)).encode()',
        DATA[1:],
    ),
    Mutation(
        "NumPy and torch draw the same numbers", "randomness", "smt/data/rng.py",
        "np.random.seed(seed >> 31)", "np.random.seed(seed & 0xFFFFFFFF)",
        DATA[1:],
    ),
    # --- data ------------------------------------------------------------------------------------
    Mutation(
        "an image's augmentation is the same in every epoch", "data", "smt/data/classification.py",
        'reseed(self._seed, "augment", micro_batch.epoch, index)',
        'reseed(self._seed, "augment", index)',
        (*DATA, "unit/data/transforms/test_classification.py"),
    ),
    Mutation(
        "a scene's augmentation is the same in every epoch", "data", "smt/data/loader.py",
        'reseed(self._seed, "augment", epoch, step, number, place)',
        'reseed(self._seed, "augment", step, number, place)',
        ("unit/data/test_segmentation.py", "integration/tasks/test_downstream.py"),
    ),
    Mutation(
        "a detector's padding is normalised", "data", "smt/tasks/detect.py",
        "clear_padding(self._normalise(batch.images), sizes)", "self._normalise(batch.images)",
        ("unit/tasks/test_inputs.py",),
    ),
    Mutation(
        "a segmenter's padding is normalised", "data", "smt/tasks/segment.py",
        "clear_padding(self._normalise(batch.images), batch.sizes)",
        "self._normalise(batch.images)", ("unit/tasks/test_inputs.py",),
    ),
    Mutation(
        "what is erased is not written", "data", "smt/data/classification.py",
        "self.erasures.write(normalise(self.images, torch.channels_last))",
        "normalise(self.images, torch.channels_last)",
        ("unit/data/transforms/test_classification.py",),
    ),
    Mutation(
        "processes of a node take the CPUs of all", "engine", "smt/engine/cpus.py",
        "max(int(on_node) // ranks, 1)", "int(on_node)", ("unit/engine/test_cpus.py",),
    ),
    Mutation(
        "new workers begin with the first batch again", "data", "smt/data/loader.py",
        "_worker_pool(reader, keys[done:], workers)", "_worker_pool(reader, jobs, workers)",
        DATA,
    ),
    Mutation(
        "the last images are not evaluated by several processes", "data",
        "smt/data/classification.py",
        "own = np.arange(rank, len(folder), world_size)",
        "own = np.arange(rank, len(folder) // world_size * world_size, world_size)",
        DATA,
    ),
    Mutation(
        "boxes of mirrored images are one pixel off", "data", "smt/data/transforms/detection.py",
        "[width - x2, y1, width - x1, y2]", "[width - 1 - x2, y1, width - 1 - x1, y2]",
        ("unit/data/transforms/test_detection.py",),
    ),
    Mutation(
        "the padding of a crop is of the first class", "data",
        "smt/data/transforms/segmentation.py",
        "torch.full((side, side), NO_CLASS, ", "torch.zeros((side, side), ",
        ("unit/data/transforms/test_segmentation.py",),
    ),
    Mutation(
        "the digest of a data set is of its training images alone", "data",
        "smt/datasets/file_lists.py", "                total_hash.update(text)\n",
        '                if split == "train":\n                    total_hash.update(text)\n',
        ("unit/datasets/test_manifest.py", "unit/datasets/test_coco.py",
         "integration/datasets/test_verify.py"),
    ),
    Mutation(
        "annotations that were changed since the manifest are trained on", "data",
        "smt/data/coco.py",
        "if listed is None or listed.sha256 != hashlib.sha256(text.data).hexdigest():",
        "if listed is None:",
        ("unit/datasets/test_coco.py",),
    ),
    # --- journal and provenance ------------------------------------------------------------------
    Mutation(
        "lines after the checkpoint stay in the journal", "journal", "smt/runs/journal.py",
        "        self._journal.truncate(position.bytes)\n", "",
        ("unit/runs/test_journal.py", *ENGINE),
    ),
    Mutation(
        "a line has the time at which it was last written", "journal", "smt/runs/journal.py",
        'first.setdefault(entry["line"], entry)', 'first[entry["line"]] = entry',
        ("unit/runs/test_journal.py", *SYNC),
    ),
    Mutation(
        "a clock that was set back makes time run backwards", "journal", "smt/runs/journal.py",
        'latest = max(latest, entry.get("time", latest))', 'latest = entry.get("time", latest)',
        ("unit/runs/test_journal.py", *TASKS[1:]),
    ),
    Mutation(
        "new files do not count as changes", "provenance", "smt/runs/provenance.py",
        "dirty = bool(difference or untracked)", "dirty = bool(difference)",
        PROVENANCE,
    ),
    Mutation(
        "GPU time of a run on several GPUs counts one GPU", "provenance", "smt/runs/record.py",
        "return self.world_size if", "return 1 if",
        PROVENANCE,
    ),
    # --- MLflow ----------------------------------------------------------------------------------
    Mutation(
        "the tag of a failure stays when the run goes on", "sync", "smt/tracking/sync.py",
        "            self.client.delete_tag(remote.run_id, key)\n", "            pass\n",
        SYNC,
    ),
    Mutation(
        "a line is sent before its time is known", "sync", "smt/tracking/view.py",
        "            records = records[:line_count]\n", "            pass\n",
        SYNC,
    ),
    Mutation(
        "the receipt names the run that was deleted", "sync", "smt/tracking/sync.py",
        "remote_runs.setdefault(fingerprint, run)", "remote_runs[fingerprint] = run",
        SYNC,
    ),
    Mutation(
        "the receipt holds the password of the database", "sync", "smt/tracking/sync.py",
        "tracking_uri=mlflow.redact_password(client.uri)", "tracking_uri=client.uri",
        ("unit/tracking/test_client.py", *SYNC),
    ),
    Mutation(
        "the last records of a training are not sent", "sender", "smt/tracking/sender.py",
        "            is_alive = _sleep(pause, process)\n",
        "            if not _sleep(pause, process):\n                return\n",
        SENDER,
    ),
    Mutation(
        "after an outage the sender stays slow", "sender", "smt/tracking/sender.py",
        "                pause = period\n", "",
        SENDER,
    ),
    # --- verify ----------------------------------------------------------------------------------
    Mutation(
        "the digest of a journal is not compared", "verify", "smt/verify/records.py",
        'for part in ("sha256", "bytes", "lines"):', 'for part in ("bytes", "lines"):',
        VERIFY,
    ),
    Mutation(
        "an evaluation may differ on the same machine", "verify", "smt/verify/weights.py",
        "0.0 if exact else METRICS[name].tolerance", "METRICS[name].tolerance",
        VERIFY,
    ),
    Mutation(
        "an inconsistency gives another exit code", "verify", "smt/commands/verify.py",
        "sys.exit(EXIT_UNVERIFIED if ledger.mismatches else 0)",
        "sys.exit(EXIT_UNVERIFIED if ledger.notes else 0)",
        VERIFY,
    ),
    Mutation(
        "a parent that was trained again is not told from the one started from", "verify",
        "smt/verify/lineage.py",
        "final.weights_sha256 != parent.weights_sha256",
        "final.fingerprint != parent.fingerprint",
        VERIFY[::-1],
    ),
    # --- report ----------------------------------------------------------------------------------
    Mutation(
        "deviations over seeds are too small", "report", "smt/report/verdict.py",
        "std = statistics.stdev(values)", "std = statistics.pstdev(values)",
        REPORT,
    ),
    Mutation(
        "an interval leaves out the variance of the reported value", "report",
        "smt/report/spread.py",
        "math.sqrt(1 + 1 / n)", "math.sqrt(1 / n)",
        ("unit/report/test_spread.py", *REPORT),
    ),
    Mutation(
        "seeds of other recipes are pooled", "report", "smt/report/spread.py",
        "key = (project.experiments[name].recipe, metric)", 'key = ("imagenet1k", metric)',
        ("unit/report/test_spread.py", *REPORT),
    ),
    Mutation(
        "a derived number stands in every table", "report", "smt/config/project.py",
        "value.derived_for and table not in value.derived_for", "False",
        ("unit/config/test_load.py", *REPORT),
    ),
    Mutation(
        "seeds that are not done are counted", "report", "smt/report/tables.py",
        "return sum(run.has_numbers for run in self.results.of(experiment))",
        "return len(self.results.of(experiment))",
        REPORT,
    ),
    Mutation(
        "numbers of other weights are printed", "report", "smt/report/collect.py",
        "if weights != sent_weights:", "if sent_weights is None:",
        REPORT,
    ),
    Mutation(
        "a run is off track within the floor of its band", "report", "smt/report/trajectory.py",
        "half = max(rule.spreads", "half = min(rule.spreads",
        TRAJECTORY,
    ),
    Mutation(
        "a | in a text breaks a Markdown table", "report", "smt/report/render.py",
        r"([\\`*\[\]<>|#~]|", r"([\\`*\[\]<>#~]|",
        REPORT,
    ),
    # --- status, plan, doctor --------------------------------------------------------------------
    Mutation(
        "a run that waits for another attempt is called failed", "status", "smt/runs/state.py",
        """\
    if job is not None and job.is_waiting:
        return State.QUEUED, job.reason or job.state
    if snapshot.failure:
        return State.FAILED, snapshot.failure
""",
        """\
    if snapshot.failure:
        return State.FAILED, snapshot.failure
    if job is not None and job.is_waiting:
        return State.QUEUED, job.reason or job.state
"""
        ,
        STATUS,
    ),
    Mutation(
        "a slow training is called quiet", "status", "smt/runs/progress.py",
        "usual = QUIET_STEPS / self.rate", "usual = QUIET_STEPS * self.rate",
        STATUS,
    ),
    Mutation(
        "steps that are taken again count as fast ones", "status", "smt/runs/progress.py",
        "if time < line.time and line.step", "if line.step",
        STATUS,
    ),
    Mutation(
        "a job requests more time than its partition allows", "plan", "smt/cluster/cost.py",
        "return min(wanted, int(60 * cluster.wall_hours))", "return wanted",
        PLAN,
    ),
    Mutation(
        "the longest chain of the plan counts finished runs", "plan", "smt/cluster/budget.py",
        "while current not in self._done:", "while True:",
        PLAN,
    ),
    Mutation(
        "the days of a time limit are left out", "doctor", "smt/cluster/slurm.py",
        "return (int(days or 0) * 24 + hours) * 60", "return hours * 60",
        DOCTOR,
    ),
    Mutation(
        "the doctor asks SLURM with options of the environment", "doctor", "smt/cluster/slurm.py",
        "env={**environment(), **variables}", "env=None",
        DOCTOR,
    ),
    Mutation(
        "a lock that two hosts get at once is fine", "doctor",
        "smt/cluster/doctor/file_system.py",
        "if got == GRANTED", "if not got",
        TWO_HOSTS,
    ),
    Mutation(
        "the second host has cached nothing before the change", "doctor",
        "smt/cluster/doctor/two_hosts.py",
        'second.call("visible_changes")', 'second.call("clock")',
        TWO_HOSTS,
    ),
    # --- params and fingerprints -----------------------------------------------------------------
    Mutation(
        "another class map of the same name is the same run", "fingerprint",
        "smt/config/fingerprint.py",
        'digests[f"class_map:{class_map}"] if class_map else None', "class_map",
        PARAMS[1:],
    ),
    Mutation(
        "a new title trains a run again", "fingerprint", "smt/config/fingerprint.py",
        '{"title", "drop_path", "deterministic", ', '{"drop_path", "deterministic", ',
        PARAMS[1:],
    ),
    Mutation(
        "an overlay of one key drops its siblings", "params", "smt/config/load.py",
        "return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}",
        "return {**base, **over}",
        PARAMS,
    ),
    Mutation(
        "a batch that does not divide the global batch is taken", "params",
        "smt/config/recipes.py",
        "if self.global_batch % self.device_batch:",
        "if self.global_batch < self.device_batch:",
        PARAMS,
    ),
    # --- executor --------------------------------------------------------------------------------
    Mutation(
        "preemptions count as attempts without progress", "executor", f"{CODE}/attempts.py",
        "if attempt.end in (TERMINATED, BLOCKED):", "if attempt.end == BLOCKED:",
        EXECUTOR,
    ),
    Mutation(
        "the last requeue is never used", "executor", f"{CODE}/attempts.py",
        "if len(attempts) > max_requeues:", "if len(attempts) >= max_requeues:",
        EXECUTOR,
    ),
    Mutation(
        "a job with a part of the outputs is taken over", "executor", f"{CODE}/registry.py",
        "return set(contents) <= set(self.contents)",
        "return bool(set(contents) & set(self.contents))",
        EXECUTOR,
    ),
    Mutation(
        "a job of an earlier start is taken over though its code has changed", "executor",
        f"{CODE}/contents.py",
        '"code": _digest([internals.code(job, workflow), _script(job)]),', '"code": "",',
        EXECUTOR[::-1],
    ),
    Mutation(
        "processes without a handler are signalled as well", "executor", f"{CODE}/processes.py",
        "if name and name not in _SKIPPED_PROGRAMS and _has_handler(pid):",
        "if name and name not in _SKIPPED_PROGRAMS:",
        (f"{PLUGIN}/tests/cluster/test_resumable.py", *EXECUTOR),
    ),
    Mutation(
        "what squeue does not list is gone", "executor", f"{CODE}/diagnosis.py",
        "if squeue == GONE and (controller is None or controller.is_active):", "if False:",
        EXECUTOR[2:],
    ),
    Mutation(
        "the output of an earlier failed attempt is shown", "executor",
        f"{CODE}/diagnosis.py",
        "attempt = lines[starts[-1] :]", "attempt = lines[starts[0] :]",
        (f"{PLUGIN}/tests/unit/test_diagnosis.py", *EXECUTOR[1:]),
    ),
    Mutation(
        "a job is done though its outputs were deleted since", "executor",
        f"{CODE}/reattachment.py",
        'return result["exit_code"] == 0 and all(map(shared_folder.exists, job.outputs))',
        'return bool(result["exit_code"] == 0)',
        (f"{PLUGIN}/tests/unit/test_tracking.py", *EXECUTOR[::-1]),
    ),
    Mutation(
        "a job is done before its outputs are visible", "executor", f"{CODE}/tracking.py",
        "        shared_folder.refresh(*job.outputs, *job.rule_logs)\n", "",
        (f"{PLUGIN}/tests/unit/test_tracking.py",),
    ),
    Mutation(
        "a resumed training does not see the checkpoints of another node", "engine",
        "smt/runs/checkpoint_files.py",
        "if not shared_folder.exists(folder):", "if not folder.exists():",
        ("unit/runs/test_shared_folder.py",),
    ),
    Mutation(
        "a command that cannot go on is killed before its time limit", "executor",
        f"{CODE}/job_step.py",
        "if progress is None:", 'if progress == "":',
        EXECUTOR[3:1:-1],
    ),
    Mutation(
        "a job that ends while nobody looks is run again", "executor", f"{CODE}/job_step.py",
        "            self._write_incomplete_markers()\n", "",
        EXECUTOR[::-1],
    ),
    Mutation(
        "a full queue is an error in place of a reason to wait", "executor",
        f"{CODE}/backends.py",
        '    "maxsubmit", "job submit limit",', '    "job submit limit",',
        EXECUTOR,
    ),
    # --- proof -----------------------------------------------------------------------------------
    Mutation(
        "a proof passes with lost steps", "proof", "smt/proof/record.py",
        " and self.steps_lost_when_told == 0", "",
        PROOF,
    ),
    Mutation(
        "equal metrics count as equal weights", "proof", "smt/proof/run.py",
        "weights[0] == weights[1] and equal_numbers", "weights[0] == weights[1] or equal_numbers",
        PROOF,
    ),
    Mutation(
        "a failure after an event is taken for its effect", "proof", "smt/proof/trainings.py",
        "by_signal and code < 0", "by_signal",
        PROOF,
    ),
    Mutation(
        "an event that came too late is run all the same", "proof", "smt/proof/interrupt.py",
        "        return attempt.poll() is None  #", "        return True  #",
        PROOF,
    ),
    # --- DVC and release -------------------------------------------------------------------------
    Mutation(
        "runs of other params are recorded", "dvc", "smt/runs/state.py",
        "if final is not None and final.fingerprint == facts.fingerprint:",
        "if final is not None:",
        ("unit/versioning/test_operations.py", *DVC),
    ),
    Mutation(
        "half a lock file stays after a kill", "dvc", "smt/versioning/dvc.py",
        "    _restore_lock()\n    _remove_stale_rwlock()\n", "    _remove_stale_rwlock()\n",
        DVC,
    ),
    Mutation(
        "a run whose parent was changed is released", "release", "smt/release/selection.py",
        "                run = project.parent(run)\n", "                run = None\n",
        RELEASE,
    ),
    Mutation(
        "results are in the order of the experiments", "release", "smt/release/pack.py",
        'sorted(rows, key=lambda row: (-float(row["top1"]), row["model"]))', "rows",
        RELEASE,
    ),
    Mutation(
        "a folder of the user's own is replaced", "release", "smt/release/pack.py",
        "if name not in names:", "if lines and name not in names:",
        RELEASE,
    ),
    # --- detection -------------------------------------------------------------------------------
    Mutation(
        "the first class has no loss", "detection", "smt/detection/losses.py",
        "torch.where(labels >= 0, losses, 0)", "torch.where(labels > 0, losses, 0)",
        DETECTION,
    ),
    Mutation(
        "ATSS's bound is of another deviation", "detection", "smt/detection/atss_assigner.py",
        "overlap.std(dim=1)", "overlap.std(dim=1, unbiased=False)",
        DETECTION[2:],
    ),
    Mutation(
        "an object that overlaps no anchor takes every anchor", "detection",
        "smt/detection/matching.py",
        " & (best > 0)", "",
        DETECTION[1:],
    ),
    Mutation(
        "background samples do not fill the batch", "detection", "smt/detection/matching.py",
        "sampling.boxes - len(positive)", "int(sampling.boxes * (1 - sampling.positive))",
        DETECTION[1:],
    ),
    Mutation(
        "a prediction may grow without bound in height", "detection", "smt/detection/boxes.py",
        "height * dh.clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp()", "height * dh.exp()",
        ("unit/detection/test_boxes.py", *DETECTION[3:]),
    ),
    Mutation(
        "boxes are scaled back by one ratio for both axes", "detection",
        "smt/evaluation/predictions.py",
        "y, x = size[0] / input_size[0], size[1] / input_size[1]", "y = x = size[1] / "
        "input_size[1]",
        DETECTION[8:],
    ),
    Mutation(
        "files of results depend on the order of images", "detection",
        "smt/evaluation/predictions.py",
        "for result in sorted(results, key=lambda result: result.image_id):", "for result in "
        "results:",
        DETECTION[8:],
    ),
    Mutation(
        "images without detections are not evaluated", "detection",
        "smt/evaluation/coco.py",
        "for id_ in (valid_ids if image_ids is None else image_ids)]",
        "for id_ in (set(ids) if image_ids is None else image_ids)]",
        DETECTION[9:],
    ),
    Mutation(
        "the box loss is averaged over positives alone", "detection",
        "smt/detection/roi_heads.py",
        "distance * spec.loss_weight / count", "distance * spec.loss_weight / max(len(rows), 1)",
        DETECTION[4:],
    ),
    Mutation(
        "boxes come from the nearest level, not the one below", "detection",
        "smt/detection/pooling.py",
        "+ 1e-6).floor()", "+ 1e-6).round()",
        DETECTION[6:],
    ),
    Mutation(
        "matching queries attend to denoising queries", "detection", "smt/detection/denoising.py",
        "(group[:, None] != group) & (group < denoising.groups)",
        "(group[:, None] != group) & (group[:, None] < denoising.groups)",
        DETECTION[7:],
    ),
    # --- segmentation and models -----------------------------------------------------------------
    Mutation(
        "absent classes count as an IoU of 0", "segmentation", "smt/evaluation/semantic.py",
        "defined = values[~np.isnan(values)]", "defined = np.nan_to_num(values)",
        SEGMENTATION,
    ),
    Mutation(
        "unlabelled pixels are left out of the mean loss", "segmentation",
        "smt/segmentation/upernet.py",
        'ignore_index=NO_CLASS, reduction="none").mean()', "ignore_index=NO_CLASS)",
        SEGMENTATION[::-1],
    ),
    Mutation(
        "probabilities of the mirrored image are not mirrored back", "segmentation",
        "smt/segmentation/inference.py",
        "probabilities(model, inputs.flip(-1), size).flip(-1)",
        "probabilities(model, inputs.flip(-1), size)",
        SEGMENTATION[1:],
    ),
    Mutation(
        "drop path drops a branch of all images at once", "models", "smt/models/blocks.py",
        "x.new_empty(len(x), 1, 1, 1)", "x.new_empty(1, 1, 1, 1)",
        MODELS,
    ),
    Mutation(
        "the running variance over processes is too small", "models", "smt/models/sync_norm.py",
        "variance * count / (count - 1).clamp(min=1)", "variance",
        MODELS[::-1],
    ),
)  # fmt: skip
