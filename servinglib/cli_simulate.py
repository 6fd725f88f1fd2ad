"""`servinglib simulate mm1 --rate 0.8`: a queue by theory and by simulation, side by side.

Before a ship is built its model goes through the test tank beside the tables. Each command here is one
queue whose settings are options; it prints what theory says, what the simulation says and whether they
can both be right, and with `--plot` it draws the same for loads up to 0.95.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from servinglib.cli_output import keep, progress_bar
from servinglib.errors import InvalidSetting

if TYPE_CHECKING:
    from servinglib.experiments.study import Study
    from servinglib.policies.step_time import StepTime

simulate = typer.Typer(no_args_is_help=True, help="A queue by theory and by simulation, side by side.")

Rate = Annotated[float, typer.Option(help="Mean arrivals per second.")]
MeanService = Annotated[float, typer.Option(help="Mean service time, in seconds.")]
Customers = Annotated[int, typer.Option(help="Customers of each replication.")]
Replications = Annotated[int, typer.Option(help="Independent runs.")]
Confidence = Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")]
Seed = Annotated[int, typer.Option(help="Another seed, other customers.")]
Plot = Annotated[Path | None, typer.Option(help="Also simulate other loads and draw them in this PNG.")]
Json = Annotated[Path | None, typer.Option("--json", help="Keep the figures in this JSON file.")]


@simulate.command()
def mm1(
    rate: Rate = 0.8,
    mean_service: MeanService = 1.0,
    customers: Customers = 200_000,
    replications: Replications = 20,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    plot: Plot = None,
    output: Json = None,
) -> None:
    """One server, exponential services."""
    from servinglib.experiments import queue_studies

    study = queue_studies.mm1(rate, mean_service)
    _compare(study, customers, replications, confidence, seed, plot, output)


@simulate.command()
def mmc(
    rate: Rate = 3.2,
    mean_service: MeanService = 1.0,
    servers: Annotated[int, typer.Option(help="Servers behind one line.")] = 4,
    customers: Customers = 200_000,
    replications: Replications = 20,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    plot: Plot = None,
    output: Json = None,
) -> None:
    """Several servers, one line, exponential services."""
    from servinglib.experiments import queue_studies

    study = queue_studies.mmc(rate, mean_service, servers)
    _compare(study, customers, replications, confidence, seed, plot, output)


@simulate.command()
def mg1(
    rate: Rate = 0.8,
    mean_service: MeanService = 1.0,
    cv2: Annotated[
        float, typer.Option(help="Variance of the services over their squared mean: 0 equal, 1 exponential.")
    ] = 1.0,
    discipline: Annotated[str, typer.Option(help="fifo, ps, sjf or srpt.")] = "fifo",
    customers: Customers = 200_000,
    replications: Replications = 20,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    plot: Plot = None,
    output: Json = None,
) -> None:
    """One server, services of any variance, and the order of service of your choice."""
    from servinglib.experiments import queue_studies

    study = queue_studies.mg1(rate, mean_service, cv2, discipline)
    _compare(study, customers, replications, confidence, seed, plot, output)


@simulate.command()
def batch(
    rate: Rate = 150.0,
    alpha: Annotated[float, typer.Option(help="Seconds that each request adds to a batch.")] = 0.002,
    tau0: Annotated[float, typer.Option(help="Seconds that a batch costs however small it is.")] = 0.02,
    max_batch_size: Annotated[int, typer.Option(help="Most requests in a batch.")] = 8,
    max_wait_time: Annotated[float, typer.Option(help="Window for a fuller batch, in seconds.")] = 0.0,
    customers: Customers = 10_000,
    replications: Replications = 20,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    plot: Plot = None,
    output: Json = None,
) -> None:
    """A server that answers whole requests in batches."""
    from servinglib.experiments import queue_studies

    study = queue_studies.batch(rate, alpha, tau0, max_batch_size, max_wait_time)
    _compare(study, customers, replications, confidence, seed, plot, output)


@simulate.command()
def continuous(
    rate: Rate = 30.0,
    a: Annotated[float, typer.Option(help="Seconds that a step costs however little it holds.")] = 0.01,
    b: Annotated[float, typer.Option(help="Seconds per running request.")] = 0.0001,
    c: Annotated[float, typer.Option(help="Seconds per token of KV cache read.")] = 0.0,
    d: Annotated[float, typer.Option(help="Seconds per prompt token read.")] = 0.0,
    prompt_tokens: Annotated[int, typer.Option(help="Length of every prompt.")] = 64,
    output_tokens: Annotated[float, typer.Option(help="Mean length of the answers (geometric).")] = 100.0,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests in a step.")] = 64,
    policy: Annotated[
        str,
        typer.Option(
            help="fcfs, priority, sjf, sjf-aligned, sjf-bucketed, sjf-aging or shortest-remaining; "
            "all but fcfs are simulated step by step, so ask for fewer customers."
        ),
    ] = "fcfs",
    customers: Customers = 20_000,
    replications: Replications = 20,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    plot: Plot = None,
    output: Json = None,
) -> None:
    """A server of token steps, each of a + bn + cK + dP seconds."""
    from servinglib.experiments import serving_studies
    from servinglib.policies.step_time import StepTime

    step = StepTime(a, b, c, d)
    study = serving_studies.continuous(rate, step, prompt_tokens, output_tokens, max_num_seqs)
    if policy != "fcfs":
        study = _scheduled(study, step, prompt_tokens, output_tokens, max_num_seqs, policy)
    _compare(study, customers, replications, confidence, seed, plot, output)


@simulate.command()
def cluster(
    rate: Rate = 3.2,
    mean_service: MeanService = 1.0,
    replicas: Annotated[int, typer.Option(help="Replicas, each with a line of its own.")] = 4,
    policy: Annotated[
        str, typer.Option(help="random, round-robin, least-outstanding or power-of-two.")
    ] = "power-of-two",
    customers: Customers = 10_000,
    replications: Replications = 20,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    plot: Plot = None,
    output: Json = None,
) -> None:
    """Replicas behind a router; the rate is that of all of them together."""
    from servinglib.experiments import serving_studies

    study = serving_studies.cluster(rate, mean_service, replicas, policy)
    _compare(study, customers, replications, confidence, seed, plot, output)


def _scheduled(
    study: Study, step: StepTime, prompt_tokens: int, output_tokens: float, max_num_seqs: int, policy: str
) -> Study:
    """The same server with the same customers under another policy, of which theory knows nothing."""
    import numpy as np

    from servinglib.experiments.queue_studies import poisson_arrivals
    from servinglib.experiments.study import Theory
    from servinglib.policies.scheduling import scheduling_policy
    from servinglib.statistics import streams
    from servinglib.workload import RequestSpec
    from simulations.continuous import simulate_continuous
    from simulations.queue_run import QueueRun

    scheduling_policy(policy)  # an unknown name is refused before any work

    def simulate(rate: float, customers: int, seed: int) -> QueueRun:
        outputs = streams(seed, "outputs")["outputs"].geometric(1 / output_tokens, customers).tolist()
        arrivals = poisson_arrivals(rate, customers, seed)
        run = simulate_continuous(
            [RequestSpec(a, prompt_tokens, n) for a, n in zip(arrivals.tolist(), outputs, strict=True)],
            step,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs * prompt_tokens,
            order=scheduling_policy(policy),
        )
        starts, ends = np.array([(t.scheduled, t.finished) for t in run.timelines]).T / 1e9
        return QueueRun(arrivals, ends - starts, starts, ends)

    note = (
        "Theory is silent: it serves in order of arrival, with all who run in each step. The load is that "
        "server's; a policy that lets only some of them step may not keep up with it. One that asks for "
        "the lengths of the answers is told them."
    )
    return replace(
        study,
        title=f"{study.title}, {policy}",
        parameters={**study.parameters, "policy": policy},
        simulate=simulate,
        theory=lambda rate: Theory({}, "approximation", (note,)),
    )


def _compare(
    study: Study,
    customers: int,
    replications: int,
    confidence: float,
    seed: int,
    plot: Path | None,
    output: Path | None,
) -> None:
    """Run the study and tell what came of it: in a table, and in the files that were asked for."""
    from rich.console import Console

    from servinglib.experiments.study import Effort
    from servinglib.experiments.study_report import curve, draw, table, to_json

    effort = Effort(customers, replications, confidence, seed)
    _check_file("--plot", plot, ".png")
    _check_file("--json", output, ".json")
    console, results = Console(), []
    with progress_bar(study.title, console) as show:
        part = 0.1 if plot else 1.0
        result = study.run(effort, progress=lambda share: show("this load", share * part))
        if plot:
            results = curve(study, effort, lambda share: show("other loads", part + share * (1 - part)))
    console.print(table(study, result, effort), *result.notes, sep="\n")
    if plot:
        draw(study, results, effort).savefig(plot)
        console.print(f"{plot}")
    keep(to_json(study, effort, result, results), output)


def _check_file(option: str, path: Path | None, ending: str) -> None:
    """Refuse a file that can't be written now, and not after the work."""
    if path is None:
        return
    if path.suffix != ending or path.is_dir():
        raise InvalidSetting(f"{option} {path} is not a file that ends in {ending}; name one that does")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"{option} {path}: {error.strerror}; name a file elsewhere") from error
