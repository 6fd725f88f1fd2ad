# %% [markdown] key="title" lang="zh" partner="8c2bcd5b"
# # 06 · 连续批处理
#
# 聊天服务的回答短则 8 个 token，长则 200 个，每 16 个请求凑一批，机器从早忙到晚。
# 上周开放了长文档：一个 1,500 token 的提示词进来，正看着回答往外冒字的用户就说「卡了一下」。
# 会上有两个提议：再买一台机器；把每步的 token 预算 `max_num_batched_tokens` 调到最小，图个平稳。
# 你批哪个？
#
# 学完这一课，你能做三件事：
#
# - 由回答长度的分布算出一批里有多少空座位，以及连续批处理能拿回多少；
# - 按 token 间延迟的上限选分块预填充的预算，并说出首 token 延迟要为此付多少；
# - 看懂抢占日志，知道该数哪个数。

# %% [markdown] key="title" lang="en" partner="f506b76f"
# # 06 · Continuous batching
#
# A chat service gives answers of 8 to 200 tokens, in batches of 16 requests, and its machine is busy all
# day. Last week long documents were allowed: when a prompt of 1,500 tokens comes in, users watching their
# answers grow say that "it froze for a moment". Two proposals are on the table: buy a second machine; or turn
# the token budget of a step, `max_num_batched_tokens`, all the way down, for smoothness. Which do you sign?
#
# After this lesson you can
#
# - work out from the law of answer lengths how many seats of a batch are empty, and how much of that
#   continuous batching wins back;
# - choose the budget of chunked prefill from a limit on inter-token latency, and say what it costs in time
#   to first token;
# - read a log of preemptions, and know which number to count.

# %% key="imports"
import numpy as np

from servinglib.cache.block_pool import BlockPool
from servinglib.course import check, hint
from servinglib.course.exercises.lesson06 import judge_budget, judge_order
from servinglib.course.exercises.lesson06.eviction import STEP, run_short_of_blocks
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.registry import load_engine
from servinglib.experiments import boarding
from servinglib.experiments.serving_run import drift, fit_step_time, serve
from servinglib.experiments.step_grid import Guest, coach_members, draw, seat_chart, walk
from servinglib.plots import COLOURS, MEASURED, SIMULATED, THEORY, figure
from servinglib.policies.step_time import StepTime
from servinglib.policies.stepping import StepPlanner
from servinglib.workload import Fixed, LogNormal, RequestSpec, Uniform, poisson
from simulations.continuous import simulate_continuous
from simulations.theory.continuous import capped_mean_sojourn
from simulations.theory.fluid import marginal_work, work_conserving_rate_limit

# %% [markdown] key="predict" lang="zh" partner="788980dd"
# ## 先押注
#
# 座位还是 16 个，机器不变，只把「整批进出」换成「随到随上、完了就下」，同样一堆请求能快几倍做完？
# 再猜：8 个用户正在生成，1,500 token 的提示词整个塞进一步，他们等下一个 token 的时间变成平时的几倍？

# %% [markdown] key="predict" lang="en" partner="13ebc4e6"
# ## Place your bet
#
# Same 16 seats, same machine, but requests get on whenever a seat is free and off when they are done: how
# many times faster is a pile of requests finished? And: 8 users are generating when a prompt of 1,500 tokens
# is read in one step. How many times as long as usual do they wait for their next token?

# %% key="guess"
guessed_speedup = 1.2
guessed_freeze = 5

# %% [markdown] key="seats" lang="zh" partner="e39cd6b9"
# ## 空座位
#
# 静态批处理是包车：人上齐了发车，最后一位玩够了才回来。动态批处理（第 04 课）改的是**何时发车**，
# 车上的规矩没变：先玩够的人占着座位干等。连续批处理是滑雪缆车：转过来一个空位，就上一个人。
# 图和公式里，整批进出写作 coach，随到随上写作 lift。
#
# 下面是 48 个回答坐 6 个座位，长度在 8 到 200 之间均匀分布。每种颜色是一个请求，白的是空座位。
# 下半图用的就是引擎的调度代码，只是每一步都当作 1 秒。

# %% [markdown] key="seats" lang="en" partner="5a8e7404"
# ## Empty seats
#
# Static batching is a chartered coach: it leaves when all are aboard and comes home when the last has seen
# enough. Dynamic batching (lesson 04) changes **when the coach leaves**, and not the rule on board: who is
# done sits and waits. Continuous batching is a ski lift: an empty seat comes round, and somebody gets on.
#
# Here 48 answers ride on 6 seats, their lengths uniform from 8 to 200. Each colour is a request, and white
# is an empty seat. The lower half is planned by the engine's own scheduling code, with every step
# counted as 1 second.

# %% key="seats-code"
LOW, HIGH = 8, 200
lengths = {"prompts": Fixed(16), "outputs": Uniform(LOW, HIGH)}
few = [RequestSpec(0.0, s.prompt_tokens, s.output_tokens) for s in poisson(1, count=48, seed=4, **lengths)]
coach = seat_chart(coach_members([s.output_tokens for s in few], 6), 6)
lift_run = simulate_continuous(few, StepTime(1.0, 0.0), max_num_seqs=6)
lift = seat_chart([step.members for step in lift_run.steps], 6)

fig, ax = figure("The same answers, the same seats", "step", "seat", size=(6.4, 3.6))
for top, chart, name in ((0, coach, "coach"), (7, lift, "lift")):
    colours = np.ma.masked_less(chart, 0) * 7 % 48  # neighbours get unlike colours
    ax.imshow(
        colours,
        extent=(0, chart.shape[1], top + 6, top),
        aspect="auto",
        cmap="turbo",
        alpha=0.75,
        interpolation="nearest",
    )
    empty = (chart < 0).mean()
    ax.annotate(f" {name}: {chart.shape[1]:,} steps,\n {empty:.0%} of seats empty", (chart.shape[1], top + 3))
ax.set(xlim=(0, 1.45 * coach.shape[1]), ylim=(13.2, -0.2), yticks=[])
ax.grid(visible=False)

# %% [markdown] key="longest" lang="zh" partner="3b056fac"
# 一批要走到它**最长**的那个回答为止。$B$ 个座位、平均长度 $E[L]$，一批提供 $B\cdot E[\max]$ 个座位步，用掉 $B\cdot E[L]$ 个，
# 所以空座比例只由两个数决定。8 到 200 均匀分布时，最长者有封闭形式，其中 $F(k)$ 是长度不超过 $k$ 的概率：
#
# $$\text{empty}=1-\frac{E[L]}{E[\max_B]},\qquad E[\max_B]=200-\sum_{k=8}^{199}F(k)^B$$
#
# 座位越多，空得越多，因为越容易碰上一个长的。尾巴越重越糟：另一条用的是对数正态分布，它更像真实的对话。

# %% [markdown] key="longest" lang="en" partner="cd01c5d4"
# A batch goes on until its **longest** answer. With $B$ seats and a mean length $E[L]$ it offers
# $B\cdot E[\max]$ seat-steps and uses $B\cdot E[L]$ of them, so two numbers decide how much is empty. For
# lengths uniform from 8 to 200 the longest has a closed form, where $F(k)$ is the probability of a length
# of at most $k$:
#
# $$\text{empty}=1-\frac{E[L]}{E[\max_B]},\qquad E[\max_B]=200-\sum_{k=8}^{199}F(k)^B$$
#
# More seats mean more empty ones, since a long answer is more likely to be among them. A heavy tail makes
# it worse: the other curve is a lognormal law, which is more like real conversations.

# %% key="longest-code" tags=["nbval-check-output"]
uniform, heavy = Uniform(LOW, HIGH), LogNormal(median=60, sigma=1.0, longest=1000)
mean_length = (LOW + HIGH) / 2
at_most = np.arange(1, HIGH - LOW + 1) / (HIGH - LOW + 1)  # F(8), ..., F(199)


def longest(seats):
    return HIGH - np.sum(at_most**seats)


def simulated_empty(law, seats, batches=20_000):
    drawn = law.sample(np.random.default_rng(seats), seats * batches).reshape(batches, seats)
    return 1 - drawn.mean() / drawn.max(axis=1).mean()


sizes = (1, 2, 4, 8, 16, 32, 64)
print("seats  E[max]  empty: theory  simulated   lognormal")
for seats in sizes:
    theory, found, tail = (
        1 - mean_length / longest(seats),
        simulated_empty(uniform, seats),
        simulated_empty(heavy, seats),
    )
    print(f"{seats:5d}{longest(seats):8.1f}{theory:15.1%}{found:11.1%}{tail:12.1%}")

# %% [markdown] key="paper" lang="zh" partner="ba6f43bd"
# ## 一步一步，在纸上
#
# 缆车的规矩全在 `StepPlanner.plan` 里，每一步重排一次：
#
# 1. 正在解码的，每人 1 个 token；
# 2. 提示词读了一半的，接着读，直到这一步的预算用完；
# 3. 还有预算、座位和 KV 块，就按队列顺序放人进来，不越过队首。
#
# 四个请求，3 个座位，每步最多 6 个 token。C 的提示词有 12 个 token，在第 2 步到达。先在纸上画，再运行。
# 方格里的数是这一步为它算的 token 数。

# %% [markdown] key="paper" lang="en" partner="e3bf75e1"
# ## Step by step, on paper
#
# The lift's rules are all in `StepPlanner.plan`, which starts afresh for each step:
#
# 1. whoever decodes gets 1 token;
# 2. prompts that were begun are read on, until the budget of the step is used up;
# 3. while there is budget, a seat and KV blocks, the queue is let in, in order, passing nobody over.
#
# Four requests, 3 seats, at most 6 tokens a step. C has a prompt of 12 tokens and comes in step 2. Draw
# it on paper first, then run the cell. The number in a square is how many tokens are computed for the
# request in that step.

# %% key="paper-code"
guests = {"A": Guest(0, 3, 7), "B": Guest(0, 2, 3), "C": Guest(2, 12, 3), "D": Guest(3, 2, 2)}


def score(kv_blocks):
    planner = StepPlanner(BlockPool(kv_blocks, block_size=4), max_num_seqs=3, max_num_batched_tokens=6)
    return walk(planner, guests)


fig, ax = figure("Who computes what: budget 6, 3 seats", "step", "request", size=(6.4, 2.6))
draw(ax, score(kv_blocks=1000))

# %% [markdown] key="paper-reading" lang="zh" partner="b01d15ab"
# 读三处。第 2 到第 4 步，C 的提示词被切成 4、5、3 三块，A 一步也没停：这就是分块预填充。
# 第 3 步有一个空座位，D 却在等：座位够了，预算不够，6 个 token 给了 A 一个、C 五个。
# 第 4 步 B 已经走了，D 立刻补上，不必等 A 和 C：这就是「连续」。
# 读完提示词的那一步顺便产出首 token，所以 A 的 7 个 token 只占 7 格。

# %% [markdown] key="paper-reading" lang="en" partner="dc986866"
# Three things to read. In steps 2 to 4 the prompt of C is cut into pieces of 4, 5 and 3, and A doesn't
# pause once: that is chunked prefill. In step 3 a seat is free and D waits all the same: there is a seat but
# no budget, since the 6 tokens went to A, one, and C, five. In step 4 B has left, and D is in at once
# without waiting for A and C: that is what "continuous" means. The step that ends a prompt also yields the
# first token, so the 7 tokens of A take 7 squares.

# %% [markdown] key="gain" lang="zh" partner="4f3391fb"
# ## 空座位值多少时间
#
# 空座位不等于空耗的时间。$n$ 个请求的一步大致用时 $a+bn$：$a$ 是读一遍权重，$b$ 是每个请求自己的那份。
# 如果引擎懂得跳过已经完成的行，空座位只浪费 $a$；如果它照样算（带填充的静态批就是这样），$b$ 也一起浪费。
# 每个请求摊到的时间：
#
# $$\text{coach}=\frac{a\,E[\max_B]}{B}+b\,E[L],\qquad \text{lift}=\frac{a\,E[L]}{B}+b\,E[L]$$
#
# 所以收益最多是 $E[\max_B]/E[L]$，$a$ 远大于 $bB$ 时才接近它。下面 48 个请求一次到齐，`bench-30m`，三种办法：
# Transformers 引擎整批跑；我们的引擎整批跑；我们的引擎连续跑。后两者内核、模型完全一样，差别只有上下车的规矩。
# 步数不看时钟，仿真和引擎必须一步不差；秒数由刚标定的 $\tau=a+bn+cK+dP$ 预测。干扰只会让机器变慢，所以后两者轮流各跑两遍，取快的那遍。

# %% [markdown] key="gain" lang="en" partner="4a27f539"
# ## What an empty seat costs in time
#
# Empty seats are not the same as wasted time. A step with $n$ requests takes about $a+bn$: $a$ is reading the
# weights once, and $b$ each request's own share. If the engine skips rows that are done, an empty seat only
# wastes $a$; if it computes them all the same, as padded static batches do, it wastes $b$ as well. The
# time per request:
#
# $$\text{coach}=\frac{a\,E[\max_B]}{B}+b\,E[L],\qquad \text{lift}=\frac{a\,E[L]}{B}+b\,E[L]$$
#
# So the gain is at most $E[\max_B]/E[L]$, and comes near it where $a$ is far above $bB$. Below, 48 requests
# are all there at once, on `bench-30m`: the Transformers engine in batches; our engine in batches; our
# engine continuously. The last two share kernels and model, and differ only in who gets on when. Steps don't
# depend on the clock, so simulation and engine must agree to the last one; seconds are predicted by
# $\tau=a+bn+cK+dP$, calibrated a moment before. Whatever else a machine does can only slow a run down, so these
# two take turns, twice, and the faster run of each counts.

# %% key="gain-code"
SEATS = 16
pile = poisson(1, count=48, seed=1, **lengths)
with load_engine("transformers", "bench-30m") as coaches:
    coaches.warm_up()
    padded_seconds = boarding.in_batches(coaches, pile, SEATS)

engine = ContinuousEngine.load(
    "bench-30m", max_num_seqs=SEATS, prefix_caching=False, kv_cache_memory="256MiB"
)
engine.warm_up()
start, others = engine.now(), poisson(1, count=32, seed=2, **lengths)
boarding.in_batches(engine, others, SEATS)
boarding.run_backlog(engine, others)
step = calibrated = fit_step_time([s for s in engine.steps if s.start >= start])

start = engine.now()
runs = [(boarding.in_batches(engine, pile, SEATS), boarding.run_backlog(engine, pile)) for _ in range(2)]
coach_seconds, lift = min(coach for coach, _ in runs), min((run for _, run in runs), key=lambda r: r.seconds)
coach_steps = len([s for s in engine.steps if s.start >= start]) // len(runs) - lift.steps

# %% key="gain-table"
trip = boarding.CoachTime(pile, step)
coach_paper = sum(trip(SEATS) for _ in range(0, len(pile), SEATS))
lift_paper = boarding.simulate_backlog(pile, step, max_num_seqs=SEATS)
expected = longest(SEATS) * len(pile) / SEATS, mean_length * len(pile) / SEATS
members = coach_members([s.output_tokens for s in pile], SEATS)
print("48 answers, 16 seats     steps: theory  simulated  engine    seconds: simulated  measured")
print(f"Transformers, batches  {expected[0]:15.0f}{len(members):11d}{padded_seconds:40.2f}")
print(
    f"ours, batches          {expected[0]:15.0f}{len(members):11d}{coach_steps:8d}{coach_paper:22.2f}{coach_seconds:10.2f}"
)
print(
    f"ours, continuous       {expected[1]:15.0f}{lift_paper.steps:11d}{lift.steps:8d}{lift_paper.seconds:22.2f}{lift.seconds:10.2f}"
)
speedup = coach_seconds / lift.seconds
a, b = step.a, step.b
bound = (a * longest(SEATS) / SEATS + b * mean_length) / (a * mean_length / SEATS + b * mean_length)
print(
    f"\nsame engine, other rule: {speedup:.2f}x measured, {coach_paper / lift_paper.seconds:.2f}x simulated;"
)
print(f"endless pile: {bound:.2f}x in theory here, {longest(SEATS) / mean_length:.2f}x if b were 0")
print(f"you said {guessed_speedup:.2f}x")

# %% [markdown] key="gain-reading" lang="zh" partner="e406b186"
# 理论一列是期望，而且连续那一行不算收尾：48 个请求里最后几个走光之前，缆车也有空座位，这堆请求越大，收尾越不要紧。
# 时间上的收益小于步数上的收益，差的主要是公式里的 $b$：CPU 上算术不便宜，每个请求自己的那份不可忽略。
# 直线也只是近似：只剩一两行时引擎另走一条快路（第 05 课的台阶），包车快散场的那些步，比直线说的还便宜。
# Transformers 那一行有两个原因搅在一起：完成的行照样算，每步的框架开销也不同。
# 所以听到「连续批处理快几倍」，先问基线是谁。

# %% [markdown] key="gain-reading" lang="en" partner="73ff52ff"
# The theory column is an expectation, and in the continuous row it leaves out the end: while the last few of
# the 48 finish, the lift has empty seats too, which matters less the larger the pile. The gain in time is
# below the gain in steps, mostly for the $b$ of the formula: arithmetic is dear on a CPU, and each request's
# own share counts. The straight line is an approximation, too: with one or two rows left the engine takes a
# faster path (the jump of lesson 05), so a coach's last steps are cheaper still. In the row of Transformers two
# things mix: rows that are done are computed on, and its framework costs a different sum per step. So when
# continuous batching is called so many times faster, ask: than what?

# %% [markdown] key="load" lang="zh" partner="77d359ac"
# ## 有负载的日子：三列
#
# 一堆请求一次到齐是离线任务。用户是陆续来的，泊松到达，而且更在意延迟。容量由满座时的步长决定：
# 把读 KV 和读提示词都摊进每个 token，得到 $b'=w/E[L]$，其中 $w$ 是一个请求给忙碌的服务器增加的秒数，那么
#
# $$\text{lift}:\ \lambda<\frac{B}{E[L](a+b'B)},\qquad \text{coach}:\ \lambda<\frac{B}{a\,E[\max_B]+wB}$$
#
# 座位未满时，$n$ 个请求一起走，每人每秒得 $1/(a+b'n)$ 个 token，这是第 03 课的处理器共享，只是总速度随人数变，均值仍只取决于 $E[L]$；
# 座位满了要排队，`capped_mean_sojourn` 把两段接成一条生灭链（对几何分布的长度精确，这里是近似）。
# 同一串到达：理论、仿真、真引擎；旁边是放在同一个引擎前面的动态批处理，它有人就发车，最多 16 人。

# %% [markdown] key="load" lang="en" partner="083825d2"
# ## A day with traffic: three columns
#
# A pile that is there at once is an offline job. Users come one by one, as a Poisson stream, and care more
# about latency. Capacity follows from the length of a full step. Spread the reading of KV cache and prompts
# over the tokens, as $b'=w/E[L]$, where $w$ is how many seconds one request adds to a busy server. Then
#
# $$\text{lift}:\ \lambda<\frac{B}{E[L](a+b'B)},\qquad \text{coach}:\ \lambda<\frac{B}{a\,E[\max_B]+wB}$$
#
# While seats are free, $n$ requests go together and each gets $1/(a+b'n)$ tokens a second: the processor sharing
# of lesson 03 with a total speed that varies, and the mean still depends on $E[L]$ alone. Full seats mean a queue.
# `capped_mean_sojourn` joins both into one birth-death chain, exact for geometric lengths and an
# approximation here. One list of arrivals goes through theory, simulation and the real engine; beside it
# stands dynamic batching in front of the same engine, leaving with whoever waits, at most 16.


# %% key="load-theory"
def per_token(step):
    outputs = np.arange(LOW, HIGH + 1)
    return StepTime(step.a, marginal_work(step, np.full(len(outputs), 16), outputs) / mean_length)


def capacities(step):
    flat = per_token(step)
    lift = SEATS / (mean_length * flat(SEATS))
    coach = SEATS / (flat.a * longest(SEATS) + flat.b * mean_length * SEATS)
    return lift, coach


def show(name, latencies):
    mean, p99 = np.mean(latencies), np.percentile(latencies, 99)
    print(f"  {name:20s} mean {mean * 1e3:5.0f} ms   P99 {p99 * 1e3:5.0f} ms")
    return mean


# %% key="load-code"
async def compare(share):
    step = fit_step_time((await serve(engine, poisson(15, duration=2.0, seed=9, **lengths))).steps)
    limit, coach_limit = capacities(step)
    rate = share * limit
    workload = poisson(rate, duration=4.0, seed=5, **lengths)
    print(f"{rate:.1f} requests/s; limits: lift {limit:.1f}/s, coach {coach_limit:.1f}/s")
    theory = capped_mean_sojourn(rate, mean_length, per_token(step), SEATS)
    print(f"  lift, theory         mean {theory * 1e3:5.0f} ms")
    simulated = show("lift, simulated", simulate_continuous(workload, step, max_num_seqs=SEATS).latencies)
    run = await serve(engine, workload)
    slower = step.slower(drift(run.steps, step))
    show("  at the run's speed", simulate_continuous(workload, slower, max_num_seqs=SEATS).latencies)
    measured = show("lift, measured", run.latencies)
    print(f"  drift: the steps of this run took {drift(run.steps, step):+.0%} against the calibration")

    start = engine.now()
    boarding.in_batches(engine, poisson(1, count=16, seed=3, **lengths), 8)
    step_in_batches = fit_step_time([s for s in engine.steps if s.start >= start])
    paper = boarding.simulate_coaches(workload, step_in_batches, SEATS)
    real = await boarding.serve_coaches(engine, workload, SEATS)
    coach = show("coach, simulated", [t.total / 1e9 for t in paper])
    coach_measured = show("coach, measured", [t.total / 1e9 for t in real])
    return {"step": step, "lift": (simulated, measured), "coach": (coach, coach_measured)}


loads = (0.45, 0.85)
columns = [await compare(share) for share in loads]

# %% key="load-figure"
step = columns[-1]["step"]
limit, coach_limit = capacities(step)
fig, ax = figure(
    "Mean latency of coach and lift",
    "arrival rate (share of the lift's limit)",
    "mean latency (ms)",
    yscale="log",
)
fine = np.linspace(0.1, 0.95, 60)
ax.plot(fine, capped_mean_sojourn(fine * limit, mean_length, per_token(step), SEATS) * 1e3, **THEORY)
ways = {"lift": lambda w: simulate_continuous(w, step, max_num_seqs=SEATS).latencies}
ways["coach"] = lambda w: [t.total / 1e9 for t in boarding.simulate_coaches(w, step, SEATS)]
for way, simulate in ways.items():
    colour = {} if way == "lift" else {"color": COLOURS["purple"]}
    shares = [s for s in (0.2, 0.4, 0.6, 0.8, 0.9) if way == "lift" or s * limit < 0.95 * coach_limit]
    means = [1e3 * np.mean(simulate(poisson(s * limit, count=1200, seed=7, **lengths))) for s in shares]
    ax.plot(shares, means, linestyle="", label=f"{way}, simulated, long run", **SIMULATED | colour)
    measured = [column[way][1] * 1e3 for column in columns]
    ax.plot(loads, measured, linestyle="", label=f"{way}, measured", **MEASURED | colour)
ax.axvline(coach_limit / limit, color="#999999", linewidth=1)
ax.set_ylim(300, 20_000)
ax.annotate("the coach's limit ", (coach_limit / limit, 340), ha="right", color="#666666")
_ = ax.legend(loc="upper left")

# %% [markdown] key="load-reading" lang="zh" partner="d30c0744"
# 竖线左边，缆车快在两处：不用等下一班车，也不用陪最长的人坐到底。竖线右边，包车没有稳态，
# 它的点有多高只取决于你看了多久；缆车还在正常工作。这才是买机器之前该看的图。
# 实测和理论有差，先想三条：短短几秒的均值自己就在晃，和**同一串到达**的仿真比，晃动就抵消了大半；直线抹平了几行处的台阶，人少时理论就不准；
# 机器快慢也在变，`drift` 是这次运行的步长比标定时慢了多少，负载高时放大好几倍。「at the run's speed」一行把仿真的步长按漂移拉长重跑：
# 它贴近实测，错的就只是标定那一刻的机器快慢；连它也不准，才轮到怀疑模型。

# %% [markdown] key="load-reading" lang="en" partner="1d1502fb"
# Left of the vertical line the lift wins twice: no waiting for the next coach, and no sitting with the
# longest to the end. Right of it the coach has no steady state, and how high its point is depends only on
# how long you watched; the lift goes on as usual. Look at this figure before buying a machine. Where
# measurement and theory differ, think of three things: a mean over a few seconds moves by itself, and against
# the simulation of **the same arrivals** most of that cancels; a line smooths over the jump at a few rows, so with
# few requests theory is off; and the machine's speed changes. `drift` says how much slower the run's steps were
# than calibrated, and high load multiplies it. The line "at the run's speed" is the simulation again, with steps
# stretched by the drift: where it is close to the measurement, only the machine's speed at calibration was wrong;
# where even this line is off, suspect the model.

# %% [markdown] key="chunk" lang="zh" partner="f95c9b44"
# ## 长提示词：一步塞进去，还是切块
#
# 一步里读 $P$ 个提示词 token 要多花 $dP$ 秒，而这一步里**所有人**都在等。把预算设为 $C$，$n$ 个人在解码，每步最多读 $C-n$ 个：
#
# $$\text{gap}=a+b(n+1)+cK+d(C-n),\qquad \text{TTFT}\approx\left\lceil\frac{P}{C-n}\right\rceil\bigl(a+b(n+1)+cK\bigr)+dP$$
#
# $dP$ 总归要付，切块不省；切得越细，固定的那份付得越多。一边是别人的卡顿，一边是长提示词自己的首 token 延迟。
# 下面 8 个人在生成，0.05 秒时来一个 1,500 token 的提示词，四种预算各来三遍，取最平静的一遍：别的程序只会添乱，不会帮忙。

# %% [markdown] key="chunk" lang="en" partner="8a74a833"
# ## A long prompt: in one step, or in pieces
#
# Reading $P$ prompt tokens makes a step $dP$ seconds longer, and **everybody** in the step waits for it.
# With a budget of $C$ and $n$ requests that decode, at most $C-n$ are read per step:
#
# $$\text{gap}=a+b(n+1)+cK+d(C-n),\qquad \text{TTFT}\approx\left\lceil\frac{P}{C-n}\right\rceil\bigl(a+b(n+1)+cK\bigr)+dP$$
#
# Pieces don't save $dP$; the finer they are, the more often the fixed part is paid. On one side is how long the
# others freeze, on the other the long prompt's own time to first token. Below, 8 requests are generating
# when, at 0.05 s, a prompt of 1,500 tokens comes; each of four budgets is tried three times, and the calmest
# run counts, since other programs only ever disturb.

# %% key="chunk-code"
CHATS, PROMPT = 8, 1500
event = boarding.long_prompt_among(CHATS, PROMPT)


async def try_budget(budget):
    settings = {"max_num_seqs": SEATS, "max_num_batched_tokens": budget}
    with ContinuousEngine.load(
        "course-tiny", prefix_caching=False, kv_cache_memory="256MiB", **settings
    ) as cut:
        await serve(cut, boarding.mixed_lengths())  # each length is slower the first time
        step = fit_step_time((await serve(cut, boarding.mixed_lengths())).steps)
        runs = sorted([await boarding.interrupt(cut, event) for _ in range(3)], key=lambda run: run.gap)
    return step, boarding.simulate_interruption(event, step, **settings), runs[0]


interruptions = {budget: await try_budget(budget) for budget in (2048, 512, 128, 32)}
print("budget   longest gap (ms): simulated  engine    TTFT of the long prompt (ms): simulated  engine")
for budget, (_, paper, real) in interruptions.items():
    numbers = (paper.gap, real.gap, paper.ttft, real.ttft)
    print("{:6d}{:29.1f}{:8.1f}{:42.0f}{:8.0f}".format(budget, *(1e3 * x for x in numbers)))

# %% key="chunk-figure"
fig, ax = figure(
    "A prompt of 1,500 tokens, as the others feel it",
    "time since the prompt came (ms)",
    "time between two tokens (ms)",
)
window = 1.3 * max(interruptions[budget][2].ttft for budget in (2048, 128))
for budget, colour in {2048: "orange", 128: "blue"}.items():
    ends = np.array(interruptions[budget][2].ends)
    seen = (ends[1:] > -window / 3) & (ends[1:] < window)
    name = "in one step" if budget == 2048 else f"in pieces, budget {budget}"
    gaps = np.diff(ends)[seen] * 1e3
    ax.plot(ends[1:][seen] * 1e3, gaps, marker=".", color=COLOURS[colour], label=name)
ax.set_ylim(0)
_ = ax.legend()
step, _, whole = interruptions[2048]
usual = np.median(np.diff([end for end in whole.ends if end < 0]))
print(f"in one step they waited {whole.gap / usual:.0f} times as long as usual; you said {guessed_freeze}")

# %% key="tradeoff-code"
fig, ax = figure(
    "The budget trades their gap for its first token",
    "time to first token of the long prompt (ms)",
    "longest gap of the others (ms)",
)
step = interruptions[128][0]
budgets = np.geomspace(32, 2048, 60)
piece = np.minimum(budgets - CHATS, PROMPT)
plain = step(CHATS + 1, PROMPT // 2 + CHATS * 80)
ax.plot(
    (np.ceil(PROMPT / piece) * plain + step.d * PROMPT) * 1e3,
    (step(CHATS + 1, PROMPT + CHATS * 80) + step.d * piece) * 1e3,
    label="theory, one fit for all",
    **THEORY,
)
for i, (budget, (_, paper, real)) in enumerate(interruptions.items()):
    ax.plot(paper.ttft * 1e3, paper.gap * 1e3, linestyle="", label=None if i else "simulated", **SIMULATED)
    ax.plot(real.ttft * 1e3, real.gap * 1e3, linestyle="", label=None if i else "measured", **MEASURED)
    ax.annotate(f"  {budget}", (real.ttft * 1e3, real.gap * 1e3), va="bottom")
ax.set(xlim=0, ylim=0)
_ = ax.legend()

# %% [markdown] key="chunk-reading" lang="zh" partner="2bcc7fa8"
# 不切块，人人卡一下，长提示词最快；切得太细，谁也不卡，长提示词等很久。曲线有拐点：
# 一块的读取时间 $d(C-n)$ 与一步的固定时间相当的地方，再往细里切，卡顿几乎不再改善，首 token 延迟却成倍地涨。
# 仿真和实测对不上的地方，是线性的步长公式不准：注意力的代价随「块长乘上下文」增长，公式里没有这一项；一步读得很多时，每个 token 的价钱也不再一样。

# %% [markdown] key="chunk-reading" lang="en" partner="b22fbcec"
# Without pieces everybody freezes once and the long prompt is fastest; with very fine ones nobody freezes
# and the long prompt waits long. There is a knee where reading a piece, $d(C-n)$, takes about as long as
# the fixed part of a step. Below it the gap hardly improves and the time to first token multiplies. Where
# simulation and engine differ, the linear law is off: attention costs grow with piece times context, a product
# that is not in it, and in a step that reads very much a token has another price.

# %% [markdown] key="preempt" lang="zh" partner="8aac2698"
# ## KV 缓存不够：抢占
#
# 引擎放人进来时只给眼前要用的块，因为谁也不知道回答会有多长。块用完了，排在最后的人交出全部的块，回到队列，
# 以后**重算**：提示词连同已经生成的 token 一起再读一遍。还是那四个请求，块大小为 4，总共只有 6 块：

# %% [markdown] key="preempt" lang="en" partner="8412e884"
# ## Short of KV cache: preemption
#
# The engine lets requests in with the blocks that they need now, since nobody knows how long an answer will
# be. When blocks run out, whoever is last in the order gives up all of theirs, goes back to the queue, and
# is **computed again** later: the prompt and what was generated are read once more. The same four requests,
# with blocks of 4 tokens and only 6 blocks:

# %% key="preempt-grid"
fig, ax = figure("The same four with 6 blocks of 4 tokens", "step", "request", size=(6.4, 2.6))
draw(ax, score(kv_blocks=6))

# %% [markdown] key="preempt-reading" lang="zh" partner="b6c6cf1f"
# 第 5 步 D 让位，第 6 步 C 也让位，A 走完之后才回来重读。标着 `again` 的格子是重干的活。
#
# 日志里出现几十次抢占，多数人的反应是调小 `max_num_seqs`，直到一次也没有。划算吗？下面 32 个请求一次到齐，
# 五个里约有一个带着 400 token 的长提示词。左边照常放人、该抢占就抢占；右边事后诸葛亮：挑一个恰好**一次抢占都不发生**的最大座位数。
# 计划不看时钟，所以仿真和真引擎的次数应当**完全相等**。

# %% [markdown] key="preempt-reading" lang="en" partner="4634547a"
# In step 5 D gives way, in step 6 C too; both read again once A has left. The squares marked `again` are work
# done twice.
#
# When a log shows dozens of preemptions, most people turn `max_num_seqs` down until there are none. Does
# that pay? Below, 32 requests are there at once, about one in five with a long prompt of 400 tokens. On the
# left they are let in as usual and preempted where need be; on the right, with hindsight, run the most seats
# with which **no preemption at all** happens. Plans don't depend on the clock, so the counts of simulation
# and engine should be **exactly equal**.

# %% key="preempt-pile"
rng = np.random.default_rng(12)
mixed = [
    RequestSpec(0.0, 400 if rng.random() < 0.2 else 16, int(rng.integers(LOW, HIGH + 1))) for _ in range(32)
]


def on_paper(kv_blocks, seats=SEATS):
    return boarding.simulate_backlog(mixed, STEP, kv_blocks=kv_blocks, max_num_seqs=seats)


def cautious(kv_blocks):
    seats = 1
    while seats < SEATS and not on_paper(kv_blocks, seats + 1).preemptions:
        seats += 1
    return seats, on_paper(kv_blocks, seats).seconds


# %% key="preempt-code" tags=["nbval-check-output"]
print("blocks  preemptions  recomputed  engine  seconds   none at all: seats  seconds")
for blocks in (64, 80, 112, 144, 176, 224):
    paper, engine_says = on_paper(blocks), "-"
    if blocks in (112, 144):
        real = run_short_of_blocks(mixed, blocks, SEATS)
        same = (real.preemptions, real.recomputed) == (paper.preemptions, paper.recomputed)
        engine_says = "equal" if same else "differs"
    print(f"{blocks:6d}{paper.preemptions:13d}{paper.recomputed:12,}{engine_says:>8s}", end="")
    print("{:9.2f}{:21d}{:9.2f}".format(paper.seconds, *cautious(blocks)))

# %% [markdown] key="preempt-surprise" lang="zh" partner="1a8ca068"
# 意外：**从不抢占更慢**，即使座位数是事后挑出来的最佳值。为了最坏的时刻留块，其余时刻块都闲着；
# 重算的代价是读几千个 token，而读比生成便宜得多，一步能读上百个。内存越紧，差距越大；内存快够用时，两者就没什么差别了。
# 抢占不是故障，是超售的成本，和航空公司卖票一个道理。只有当重算的 token 多到和有用的 token 相当，才值得担心。
#
# 那么该数什么？练习 06.2 会让你看到：抢占**次数**是错的指标。

# %% [markdown] key="preempt-surprise" lang="en" partner="11bc37e5"
# The surprise: **never to preempt is slower**, even with a number of seats that was chosen with hindsight.
# Blocks kept for the worst moment are idle at all others, while computing again means reading some thousands
# of tokens, and reading is far cheaper than generating, since one step can read hundreds. The shorter the
# memory, the larger the difference; where there is nearly enough, it vanishes. Preemption is no failure, it
# is the price of overbooking, as with airlines. It is a worry only when about as many tokens are
# computed again as are of use.
#
# So what should one count? Exercise 06.2 will show you that the **number** of preemptions is the wrong measure.

# %% [markdown] key="breaks" lang="zh" partner="190b21f3"
# ## 什么会让它失灵
#
# **预算小到读不完提示词。** 现在回到会上的第二个提议。满的一步有 $C$ 个 token，用时 $t_C$，
# 只要调度器不让能算的 token 等着（work-conserving），稳定的条件是（最后一个 token 不用再读，所以减 1）：
#
# $$\lambda<\frac{C/t_C}{E[p]+E[o]-1}$$
#
# 每秒 12 个请求，提示词 400，回答平均 50。预算 16 让每一步都很短，可是吞吐量也被它锁死了。
# 注意看首 token 延迟的前半程和后半程：稳定的系统两者差不多，不稳定的越来越长。
#
# **长短一样。** 回答全都等长时 $E[\max]=E[L]$，没有空座位，整批跑就很好；离线批量打分常常如此。
#
# **过载。** 连续批处理提高了容量，没有取消容量。到达率超过它，队列照样无限增长，第 11 课用背压来管。

# %% [markdown] key="breaks" lang="en" partner="a54439f9"
# ## What breaks it
#
# **A budget too small for the prompts.** Back to the second proposal on the table. A full step holds $C$
# tokens and takes $t_C$. As long as the scheduler lets no token wait that could be computed (it is
# work-conserving), it is stable if (the last token is never read, hence the 1)
#
# $$\lambda<\frac{C/t_C}{E[p]+E[o]-1}$$
#
# Take 12 requests per second, prompts of 400, answers of 50 on average. A budget of 16 makes every step short,
# and locks up the throughput as well. Look at the time to first token in the first and the second half
# of the run: in a stable system they are about alike, in an unstable one it grows.
#
# **Equal lengths.** Where all answers are equally long, $E[\max]=E[L]$, no seat is empty and batches do well;
# offline scoring is often like that.
#
# **Overload.** Continuous batching raises the capacity, it doesn't abolish it. Beyond it the queue grows
# without end as ever; lesson 11 handles that with backpressure.

# %% key="breaks-code" tags=["nbval-check-output"]
traffic = poisson(12, count=600, seed=3, prompts=Fixed(400), outputs=Uniform(20, 80))
print("budget   limit (1/s)   mean TTFT (ms): first half  second half   longest step (ms)")
for budget in (16, 20, 24, 64, 256):
    decoding = budget * 49 / 449  # the share of the tokens that are an answer's
    full = STEP.a + STEP.b * (decoding + 1) + STEP.c * (decoding * 425 + 200) + STEP.d * (budget - decoding)
    limit = work_conserving_rate_limit(budget, full, 400, 49)
    run = simulate_continuous(traffic, STEP, max_num_seqs=16, max_num_batched_tokens=budget)
    ttft = np.array([t.first_token - t.arrival for t in run.timelines]) / 1e6
    slowest = max(s.end - s.start for s in run.steps) * 1e3
    print(f"{budget:6d}{limit:12.1f}{ttft[:300].mean():29.0f}{ttft[300:].mean():13.0f}{slowest:18.1f}")

# %% [markdown] key="gpu" lang="zh" partner="7218a1f4"
# ## 换成 GPU
#
# 还是第 01 课的**算术**，不是测量：Qwen3-0.6B 的形状，H200 的公布规格，每步读一遍权重是 $a$，每个 token 的乘加是 $b$ 和 $d$。

# %% [markdown] key="gpu" lang="en" partner="92383c79"
# ## On a GPU
#
# This is the **arithmetic** of lesson 01 again and no measurement: the shape of Qwen3-0.6B, the published
# data of an H200, one reading of the weights per step for $a$, and the multiply-adds of a token for $b$ and
# $d$.

# %% key="gpu-code"
parameters = 596_049_920
machines = {"this machine": (calibrated.a, calibrated.b, calibrated.d)}
machines["one H200, at best"] = (2 * parameters / 4.8e12, 2 * parameters / 989e12, 2 * parameters / 989e12)
for name, (a, b, d) in machines.items():
    gains = [
        (a * longest(seats) / seats + b * mean_length) / (a * mean_length / seats + b * mean_length)
        for seats in (16, 64)
    ]
    print(f"{name:18s} lift over coach: {gains[0]:.2f}x at 16 seats, {gains[1]:.2f}x at 64; ", end="")
    print(f"a step doubles with a piece of a/d = {a / d:.0f} tokens")

# %% [markdown] key="gpu-reading" lang="zh" partner="767056f9"
# GPU 上 $a$ 远大于 $b$，空座位几乎就是空耗的时间，收益贴近上限 $E[\max_B]/E[L]$；
# 而且读权重时算力闲着，顺路读一两百个提示词 token 几乎不花钱。那里的预算常设为 512 到 2048，比你的 CPU 合适的值大得多。
# 预算要量，不要抄。

# %% [markdown] key="gpu-reading" lang="en" partner="5e1b4d22"
# On a GPU $a$ is far above $b$, so an empty seat is nearly wasted time and the gain comes close to its limit
# $E[\max_B]/E[L]$. And while the weights are read the arithmetic idles, so a hundred or two prompt tokens
# ride along for almost nothing. Budgets there are often 512 to 2048, far above what suits your CPU. Measure
# the budget, don't copy it.

# %% [markdown] key="exercises" lang="zh" partner="70cd1dcb"
# ## 练习
#
# 写完运行单元格，`check` 会给出最小的失败例子和可能的原因。`hint("06.1")` 给提示。
#
# **06.1** 排一步：`running` 是在跑的请求各自还要算的 token 数（1 表示在解码，更大表示提示词没读完），
# `waiting` 是排队的提示词长度。返回每个请求在这一步拿到几个 token，先 `running` 后 `waiting`，没轮到的是 0。

# %% [markdown] key="exercises" lang="en" partner="7ab21d00"
# ## Exercises
#
# Run the cell when you have written your answer: `check` shows the smallest case that fails and the likely
# cause. `hint("06.1")` gives a hint.
#
# **06.1** Fill a step. `running` has the tokens that each running request still has to have computed (1 if it
# decodes, more if it is reading its prompt), `waiting` the prompts in the queue. Return how many tokens each
# gets in this step, first `running`, then `waiting`, and 0 for those whose turn it isn't.


# %% key="ex1" exercise="06.1" tags=["nbval-check-output"]
def fill_step(running, waiting, budget, max_num_seqs):
    raise NotImplementedError


check("06.1", fill_step)


# %% key="ex1-solution" solution="06.1" tags=["nbval-check-output"]
def fill_step(running, waiting, budget, max_num_seqs):
    shares = [1 if left == 1 else 0 for left in running]
    for i, left in enumerate(running):
        if left > 1:
            shares[i] = min(left, budget - sum(shares))
    for i, prompt in enumerate(waiting):
        seat = len(running) + i < max_num_seqs
        shares.append(min(prompt, budget - sum(shares)) if seat else 0)
    return shares


check("06.1", fill_step)

# %% [markdown] key="exercise2" lang="zh" partner="dd38ba5d"
# **06.2** 谁让位？排在最后的先被抢占。写一个顺序，让被抢占的总是**损失最小**的那个；一样的（比如都在排队）按到达先后。
# 请求有 `arrival`、`number`、`num_prompt_tokens`、`num_output_tokens`、`num_computed_tokens`、`max_tokens`。
# `judge_order` 把它插进仿真器和真引擎，和 `fcfs` 比。先猜：抢占次数会变多还是变少？重算的 token 呢？

# %% [markdown] key="exercise2" lang="en" partner="4051d91b"
# **06.2** Who must go? The last in the order is preempted first. Write an order in which that is always the one who
# **loses least**; among equals, such as those who all wait, go by arrival. A request has `arrival`, `number`,
# `num_prompt_tokens`, `num_output_tokens`, `num_computed_tokens` and `max_tokens`. `judge_order` plugs it
# into the simulator and the real engine, beside `fcfs`. Guess first: will there be more preemptions or
# fewer? And recomputed tokens?


# %% key="ex2" exercise="06.2" tags=["nbval-check-output"]
def order(requests):
    raise NotImplementedError


check("06.2", order)


# %% key="ex2-solution" solution="06.2" tags=["nbval-check-output"]
def order(requests):
    return sorted(requests, key=lambda r: (-r.num_computed_tokens, r.arrival, r.number))


check("06.2", order)

# %% key="judge2" tags=["nbval-check-output"]
print(judge_order(order, mixed, kv_blocks=112, max_num_seqs=SEATS))

# %% [markdown] key="exercise3" lang="zh" partner="1342bbcc"
# **06.3** `lengths` 是实测的回答长度，每批从中随机抽 `seats` 个（可重复）。按座位步算，空座位占多大比例？求期望，不要靠抽样。

# %% [markdown] key="exercise3" lang="en" partner="ba21b5a9"
# **06.3** `lengths` are measured answer lengths, and each batch draws `seats` of them at random, with
# replacement. What share of the seat-steps is empty? The expectation, please, and no sampling.


# %% key="ex3" exercise="06.3" tags=["nbval-check-output"]
def idle_share(lengths, seats):
    raise NotImplementedError


check("06.3", idle_share)


# %% key="ex3-solution" solution="06.3" tags=["nbval-check-output"]
def idle_share(lengths, seats):
    ranked = np.sort(lengths)
    below = (np.arange(len(ranked) + 1) / len(ranked)) ** seats
    return 1 - np.mean(ranked) / np.dot(ranked, np.diff(below))


check("06.3", idle_share)

# %% [markdown] key="exercise4" lang="zh" partner="538ba419"
# **06.4** 选预算：一步最多 `limit` 秒，`decoding` 个请求在解码，另有一个在读提示词，这一步共读 `kv_tokens` 个 token 的 KV 缓存。
# 由标定的 `a`、`b`、`c`、`d`（秒）求最大的 `max_num_batched_tokens`。`judge_budget` 在你的机器上现场标定，
# 再让仿真和真引擎裁决你的预算，以及它的两倍。

# %% [markdown] key="exercise4" lang="en" partner="1c07aff7"
# **06.4** Choose the budget. A step may last `limit` seconds; `decoding` requests decode, one more reads its prompt,
# and the step reads `kv_tokens` tokens of KV cache. From calibrated `a`, `b`, `c`, `d` (s), what is the largest
# `max_num_batched_tokens`? `judge_budget` calibrates on your machine, and lets simulation and real engine
# try your budget, and twice as much.


# %% key="ex4" exercise="06.4" tags=["nbval-check-output"]
def token_budget(a, b, c, d, decoding, kv_tokens, limit):
    raise NotImplementedError


check("06.4", token_budget)


# %% key="ex4-solution" solution="06.4" tags=["nbval-check-output"]
def token_budget(a, b, c, d, decoding, kv_tokens, limit):
    piece = int((limit - a - b * (decoding + 1) - c * kv_tokens) / d)
    return decoding + piece


check("06.4", token_budget)

# %% key="judge4"
print(await judge_budget(token_budget))

# %% key="close"
engine.shutdown()

# %% [markdown] key="summary" lang="zh" partner="ed2c1a60"
# ## 星期一怎么做
#
# 1. 取一天的回答长度，算 $E[\max_B]/E[L]$：这是换掉整批进出最多能拿回的吞吐量，先于买机器。
# 2. 打开分块预填充；由 $a$、$b$、$d$ 和 token 间延迟的上限算出预算，在自己的机器上量一遍，别抄别人的。
# 3. 预算不是越小越平稳：核对 $\lambda<(C/t_C)/(E[p]+E[o]-1)$，留出余量。
# 4. 看到抢占，先数重算的 token 占多少；远少于有用的 token 就别动，别为了零抢占砍掉座位。
# 5. 预测和实测用同一串到达比；对不上时先重新标定，再怀疑模型。

# %% [markdown] key="summary" lang="en" partner="35a4798b"
# ## What to do on Monday
#
# 1. Take a day's answer lengths and work out $E[\max_B]/E[L]$: the most throughput that giving up whole
#    batches can win back, and it comes before buying machines.
# 2. Switch chunked prefill on; work out its budget from $a$, $b$, $d$ and a limit on inter-token latency,
#    measure it on your own machine, and copy nobody's.
# 3. A smaller budget is not always a smoother service: check $\lambda<(C/t_C)/(E[p]+E[o]-1)$, with room to spare.
# 4. Where there are preemptions, count the recomputed tokens first; if they are far fewer than the useful
#    ones, leave it, and don't cut seats for the sake of none.
# 5. Compare prediction and measurement on the same arrivals; where they differ, calibrate again before you
#    doubt the model.

# %% [markdown] key="references" lang="zh" partner="e2de2730"
# ## 参考文献
#
# - G.-I. Yu 等, *Orca: A Distributed Serving System for Transformer-Based Generative Models*, OSDI 2022。逐步调度由此开始。
# - W. Kwon 等, *Efficient Memory Management for Large Language Model Serving with PagedAttention*, arXiv:2309.06180。分块的 KV 缓存、抢占与重算。
# - A. Agrawal 等, *SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills*, arXiv:2308.16369。
# - A. Agrawal 等, *Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve*, arXiv:2403.02310。预算与卡顿的取舍。
# - Y. Li, J. Dai, T. Peng, *Throughput-optimal scheduling algorithms for LLM inference and AI agents*, arXiv:2504.07347。稳定条件。
# - F. P. Kelly, *Reversibility and Stochastic Networks*, 1979。处理器共享为什么只看均值。

# %% [markdown] key="references" lang="en" partner="d3e0aaba"
# ## References
#
# - G.-I. Yu et al., *Orca: A Distributed Serving System for Transformer-Based Generative Models*, OSDI 2022.
#   Where scheduling step by step began.
# - W. Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*,
#   arXiv:2309.06180. KV cache in blocks, preemption and recomputation.
# - A. Agrawal et al., *SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills*,
#   arXiv:2308.16369.
# - A. Agrawal et al., *Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve*,
#   arXiv:2403.02310. The trade between budget and freezing.
# - Y. Li, J. Dai, T. Peng, *Throughput-optimal scheduling algorithms for LLM inference and AI agents*,
#   arXiv:2504.07347. The condition of stability.
# - F. P. Kelly, *Reversibility and Stochastic Networks*, 1979. Why processor sharing asks for means alone.
