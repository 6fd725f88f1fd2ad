# %% [markdown] key="title" lang="zh" partner="95ae74b4"
# # 10 · 投机解码与量化
#
# 两家供应商上门。甲说：开投机解码，快 2.8 倍。乙说：权重换成 INT8，字节减半，快 2 倍。两家都带着真实的测试报告。
# 你的服务夜里只有 1 个请求在跑，中午同时有 48 个。买哪一家？
#
# 学完这一课，你能做三件事：
#
# - 由三个量得出的数（接受率、成本比、一步多算几个 token 的代价）预测投机解码的加速比，选出最好的猜测个数；
# - 不买任何东西，就用自己的日志算出会省下多少步；
# - 看出 INT8 在多大的批上由赚变亏，并把质量的代价写在速度旁边。
#
# 模型都随课程附带，不需要 GPU，也不需要联网。

# %% [markdown] key="title" lang="en" partner="8d6a05a9"
# # 10 · Speculative decoding and quantization
#
# Two vendors call. The first says: switch on speculative decoding, 2.8 times as fast. The second: make the
# weights INT8, half the bytes, 2 times as fast. Both bring test reports, and neither report is made up. Your
# service runs 1 request at night and 48 at noon. Whose do you buy?
#
# After this lesson you can
#
# - predict the speed-up of speculative decoding from three measured numbers (acceptance, cost ratio, the
#   price of a few more tokens in a step), and choose the best number of guesses;
# - work out from your own logs how many steps it would save, before you buy anything;
# - find the batch size at which INT8 turns from gain to loss, and write its cost in quality beside its
#   speed.
#
# All models come with the course; you need neither a GPU nor a network.

# %% key="imports"
import re
from collections import Counter

import numpy as np
import torch

from servinglib.bench.number_formats import Plan, measure, refusal
from servinglib.course import check, hint
from servinglib.course.exercises.lesson10 import judge_guess, judge_rule
from servinglib.decoder.linear import quantize
from servinglib.decoder.loading import load_decoder
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.experiments.speculation import bernoulli, in_stretches, prompt_lookup, replay, simulate
from servinglib.experiments.speculative_runs import measure_step_cost, race
from servinglib.models.held_out import held_out_texts
from servinglib.plots import COLOURS, MEASURED, SIMULATED, THEORY, figure, label
from simulations.theory.decode import speculative_speedup, speculative_tokens

# %% [markdown] key="predict" lang="zh" partner="ba8a9770"
# ## 先押注
#
# 四个数，都是「变成原来的几倍快」：投机解码（猜 4 个）在批大小 1 和 48 时，INT8 在批大小 1 和 48 时。小于 1 就是变慢。

# %% [markdown] key="predict" lang="en" partner="1bd173b1"
# ## Place your bet
#
# Four numbers, each "how many times as fast": speculative decoding (4 guesses) at batch sizes 1 and 48, and
# INT8 at batch sizes 1 and 48. Below 1 means slower.

# %% key="guess"
guessed_speculation = {1: 2.8, 48: 2.8}
guessed_int8 = {1: 2.0, 48: 2.0}

# %% [markdown] key="room" lang="zh" partner="10837833"
# ## 一步里有空位
#
# 解码一步要读一遍全部权重，却只为每个请求算出一个 token。权重已经在手上了，顺便多算几个 token 要贵多少？
# 引擎可以接受你自己的猜测函数，那就给它一个**故意全猜错**的：答案不变，但每一步都得检查 $k$ 个猜测，也就是算 $k+1$ 个 token。
# 记一步的相对耗时为 $r(k)$，不猜时 $r(0)=1$。

# %% [markdown] key="room" lang="en" partner="cfd98698"
# ## A step has room
#
# A decode step reads all weights once, and computes a single token for each request. With the weights at
# hand, what do a few more tokens cost? The engine takes a guess function of your own, so we give it one that
# is **wrong on purpose**: the answer stays the same, but each step has to check $k$ guesses, which is to
# compute $k+1$ tokens. Call the relative time of such a step $r(k)$; without guesses $r(0)=1$.

# %% key="room-code"
options = {"dtype": "float32", "kv_cache_memory": "128MiB", "max_num_seqs": 48}
cost = measure_step_cost(
    "course-tiny", batches=(1, 16, 48), guesses=(0, 2, 3, 4, 8), tokens=5, rounds=2, **options
)

fig, ax = figure(
    "A step with more tokens in it", "tokens per sequence in a step", "step time (plain step = 1)"
)
for batch, style in ((1, "o"), (16, "s"), (48, "^")):
    relative = [cost.relative(k, batch) for k in (0, 2, 3, 4, 8)]
    ax.plot([1, 3, 4, 5, 9], relative, marker=style, label=f"batch {batch}")
    print(
        f"batch {batch:2d}: plain step {cost(0, batch) * 1e3:5.1f} ms, r(4) = {cost.relative(4, batch):.2f}"
    )
ax.plot([1, 6], [1, 6], **THEORY)
ax.annotate("one step for each token", (6, 6), ha="right", va="bottom")
ax.set(xlim=(0.5, 9.5), ylim=0)
_ = ax.legend()

# %% [markdown] key="room-reading" lang="zh" partner="916ba077"
# 虚线是老老实实一步一个 token 的价钱。实线在它下面多远，就有多少可赚：猜对了，一步顶几步用。
#
# 实线往上走有两个原因。一是算术：批越大，空位已被别的请求占了，多一个 token 就多一份钱。二是引擎会**换路**：
# 这里的 CPU 引擎让不超过 4 个 token 的步每层只走一个编译好的循环，再多就逐个调用矩阵库，固定开销大得多。
# 批大小为 1 时，3 个 token 还在便宜的路上，5 个就不在了，两点之间往往有一个台阶。
# 普通的一步越快，检查就显得越贵，所以 $r(k)$ 只能在自己的引擎和机器上量。这张图就是本课的一半。

# %% [markdown] key="room-reading" lang="en" partner="0084b8ee"
# The dashed line is the honest price of one step for each token. How far a curve lies below it is how much
# there is to gain: with right guesses, one step does the work of several.
#
# A curve rises for two reasons. First, arithmetic: in a larger batch other requests have taken the room, and
# every further token has its price. Second, the engine **changes its route**: the CPU engine here takes a step
# of up to 4 tokens through one compiled loop per layer, and a larger one through separate calls to a matrix
# library, with far more fixed cost. At batch size 1, 3 tokens are still on the cheap route and 5 no longer, so
# there is often a stair between the two. The faster the plain step, the dearer the checking looks, so $r(k)$
# has to be measured on your own engine and machine. This figure is half of the lesson.

# %% [markdown] key="formula" lang="zh" partner="630b33c4"
# ## 公式：一步能出几个 token
#
# 便宜地猜 $k$ 个 token，主模型一步全部检查，留下第一个错误之前的那些，错误处换上它自己的 token。
# 设每个猜测以概率 $\alpha$ 正确，互相独立。前 $i$ 个全对的概率是 $\alpha^i$，而期望值就是这些概率之和，
# 再加上主模型自己的那一个：
#
# $$E=1+\alpha+\cdots+\alpha^k=\frac{1-\alpha^{k+1}}{1-\alpha},\qquad S=\frac{E}{r(k)+kc}$$
#
# 分母是账单，有两项：$c$ 是**猜**一个 token 的成本除以主模型一步的成本；$r(k)$ 是**查**的成本，猜得再便宜也要付。
# 书上的公式把 $r(k)$ 写成 1，那是权重读取占去全部时间的情形，这时有一条好记的推论：**只要 $\alpha>c$，猜一个就不亏**，
# 因为 $S=(1+\alpha)/(1+c)$。查要花钱时，门槛升到 $\alpha>c+r(1)-1$。
#
# 下面让引擎自己的调度代码走一遍：圆圈里每个猜测独立地抛硬币；叉号里的猜测成片地对、成片地错（抄写的段落和创作的段落），
# 它的 $\alpha$ 从运行里数出来。

# %% [markdown] key="formula" lang="en" partner="db465ad9"
# ## The formula: tokens from a step
#
# Guess $k$ tokens cheaply, let the main model check all of them in one step, keep those before the first
# wrong one, and put the model's own token in its place. Let each guess be right with probability $\alpha$,
# independently. The first $i$ are all right with probability $\alpha^i$, the mean is the sum of these
# probabilities, and the model's own token comes on top:
#
# $$E=1+\alpha+\cdots+\alpha^k=\frac{1-\alpha^{k+1}}{1-\alpha},\qquad S=\frac{E}{r(k)+kc}$$
#
# The denominator is the bill, and it has two items: $c$ is the cost of **guessing** one token over that of a
# step of the main model, and $r(k)$ is the cost of **checking**, due however cheap the guesses. Textbooks write
# 1 for $r(k)$, which holds when reading the weights takes all the time, and gives a rule to remember:
# **as long as $\alpha>c$, one guess pays**, because $S=(1+\alpha)/(1+c)$. Where checking costs something, the
# bar rises to $\alpha>c+r(1)-1$.
#
# Now the engine's own planner plays it out. For the circles every guess is an independent toss of a coin. For
# the crosses guesses are right in stretches and wrong in stretches (text that is copied, and text that is
# made up), and their $\alpha$ is counted in the run itself.

# %% key="formula-code" tags=["nbval-check-output"]
lengths = (1, 2, 4, 8)
worlds = {f"alpha {a}": bernoulli(a, np.random.default_rng(1)) for a in (0.5, 0.8, 0.95)}
worlds["stretches"] = in_stretches(0.98, 0.3, mean_length=20, rng=np.random.default_rng(2))
tokens = {name: [simulate(20_000, right, draft_tokens=k) for k in lengths] for name, right in worlds.items()}
print("world        k   alpha   E by formula   E simulated   accepted/drafted")
for name, runs in tokens.items():
    for k, run in list(zip(lengths, runs, strict=True))[1:3]:
        expected = speculative_tokens(run.acceptance, k)
        print(
            f"{name:11s} {k:2d} {run.acceptance:7.2f} {expected:14.2f} "
            f"{run.tokens_per_step:13.2f} {run.kept_share:18.2f}"
        )

# %% key="formula-figure"
fig, ax = figure("Formula and simulation", "guesses per step k", "tokens per step", xticks=lengths)
for name, runs in tokens.items():
    by_formula = [speculative_tokens(run.acceptance, k) for k, run in zip(lengths, runs, strict=True)]
    mine = {"color": COLOURS["green"]} if name == "stretches" else {}
    points = SIMULATED | mine | ({"marker": "x"} if mine else {})
    [line] = ax.plot((0, *lengths), [1, *by_formula], **(THEORY | mine))
    label(ax, line, name.replace("alpha", r"$\alpha$ ="))
    ax.plot(lengths, [run.tokens_per_step for run in runs], linestyle="", **points)
_ = ax.set(xlim=(0, 9.5), ylim=0)

# %% [markdown] key="formula-reading" lang="zh" partner="12904e75"
# 圆圈压在线上。叉号在线的下方，而且看表：它的 $\alpha$ 居然随 $k$ 变，从 0.70 到 0.78。猜测若真的独立，$\alpha$ 不会管 $k$ 是多少。
# 顺手的段落里，一步能检查到更多猜测，于是这些段落在 $\alpha$ 里占的份量过大，不顺手的段落却照样一步一步地走。
# 所以 $\alpha$ 随 $k$ 上升，就是猜测成片对错的信号，这时公式**偏乐观**；好在还有下一节的办法，根本不需要 $\alpha$。
#
# 表的最后一列是另一个陷阱。监控里的「接受率」多半是 accepted/drafted，错误之后被丢掉的猜测也算在分母里，
# 所以它比 $\alpha$ 小，猜得越长越小。把它当作 $\alpha$ 代进公式，加速比会被严重低估。

# %% [markdown] key="formula-reading" lang="en" partner="b4e649f6"
# The circles lie on their lines. The crosses lie below theirs, and look at the table: their $\alpha$ changes
# with $k$, from 0.70 to 0.78. If guesses were independent, $\alpha$ could not know what $k$ is. Where the going is
# easy, more guesses of a step get looked at, so easy stretches weigh too much in $\alpha$, while the hard ones
# are walked step by step all the same. So an $\alpha$ that rises with $k$ is the sign of guesses that are right
# in stretches, and the formula is then **too optimistic**. The next section has a way that needs no $\alpha$ at all.
#
# The last column is another trap. The "acceptance rate" on a dashboard is mostly accepted/drafted, which also
# counts the guesses thrown away behind a wrong one. It is smaller than $\alpha$, the more so the longer the
# guesses. Put it into the formula as $\alpha$, and the speed-up comes out far too low.

# %% [markdown] key="sheet" lang="zh" partner="0aee2b23"
# ## 先用日志算：标准答案法
#
# 最便宜的猜测者不是模型，而是**提示查找**：最后几个 token 上次出现时，后面跟着什么？就猜什么。猜几乎不要钱，$c\approx0$；查还是要付 $r(k)$。
#
# 贪心解码时，投机不改变答案。于是有一个省钱的办法：拿一份已经有答案的日志，逐步重放，看每个猜测对不对。不需要模型，
# 走的是引擎自己的调度代码，步数一步不差。下面重放四份答案：改名任务（整段照抄，只换一个名字）、`course-tiny` 的贪心续写、
# 它在温度 1 下的续写、以及人写的下文。

# %% [markdown] key="sheet" lang="en" partner="e8cc6f36"
# ## First from the logs: the answer sheet
#
# The cheapest guesser is no model but **prompt lookup**: what followed the last few tokens where they stood
# before? Guess that. Guessing costs next to nothing, $c\approx0$; checking still costs $r(k)$.
#
# With greedy decoding, speculation does not change the answer. That allows a cheap trick: take a log that
# has the answers, replay it step by step, and see which guesses would have been right. No model is needed,
# the planner is the engine's own, and the number of steps is exact. Here are four sheets: a renaming task
# (copy everything, change one name), the greedy continuations of `course-tiny`, its continuations at
# temperature 1, and what a person wrote next.

# %% key="sheet-texts"
plain = ContinuousEngine.load("course-tiny", **options)
sources = [text[:3000] for text in held_out_texts().values() if len(text) > 3000]
written = [plain.tokenize(text) for text in sources]
prompts, follow = [t[100:220] for t in written], [t[220:268] for t in written]


def renamed(text):
    [(name, _)] = Counter(re.findall(r"\b[a-z_]{5,}\b", text)).most_common(1)
    return plain.tokenize(re.sub(rf"\b{name}\b", "renamed", text))


def continuations(temperature):
    answers = plain.generate(prompts, max_tokens=48, ignore_eos=True, temperature=temperature, seed=1)
    return [list(answer.token_ids) for answer in answers]


# %% key="sheet-code"
greedy, sampled = continuations(0.0), continuations(1.0)
sheets = {
    "renaming": ([plain.tokenize(s[:1200]) for s in sources], [renamed(s[:1200]) for s in sources]),
    "greedy": (prompts, greedy),
    "temperature 1": (prompts, sampled),
    "a person": (prompts, follow),
}
for name, sheet in sheets.items():
    run = replay(*sheet, prompt_lookup, draft_tokens=4)
    share = np.mean([s.drafted > 0 for s in run.steps])
    print(
        f"{name:14s} guesses in {share:4.0%} of steps, alpha {run.acceptance:.2f}, {run.tokens_per_step:.2f} tokens/step"
    )

# %% [markdown] key="sheet-reading" lang="zh" partner="ef51eee5"
# 同一个猜测者，同一台机器，差别全在**文本**。改写、摘要、补丁这类要引用原文的任务，猜测者手里就有答案；开放式写作里它几乎无话可说。
# 贪心一行要打折看：小模型贪心时爱重复自己，正中提示查找的下怀。供应商的 2.8 倍多半就是在这样的文本上量的，
# 所以他没有说谎，只是那不是你的文本。

# %% [markdown] key="sheet-reading" lang="en" partner="ea388dc1"
# The same guesser, and all the difference is in the **text**. In tasks that quote, such as edits, summaries
# and patches, the guesser holds the answer in its hands; in free writing it has hardly anything to say. Mind
# the greedy row: a small model repeats itself when it is greedy, which suits prompt lookup. The vendor's 2.8
# was probably measured on such text. It is no lie; it is just not your text.

# %% [markdown] key="columns" lang="zh" partner="caa308f8"
# ## 三列对照：提示查找
#
# 现在让真引擎上场，请求一个一个来。三列用同一批提示：
#
# - **理论**：$\alpha$ 来自**另一批**提示的重放，$r(k)$ 来自第一张图，$c=0$；
# - **仿真**：重放标准答案得到每一步的猜测个数，再按 $r(k)$ 计价；
# - **实测**：五台引擎轮流回答，只计解码步的时间。

# %% [markdown] key="columns" lang="en" partner="d1f48541"
# ## Three columns: prompt lookup
#
# Now the real engine, one request at a time. The three columns share one set of prompts:
#
# - **theory**: $\alpha$ from a replay on **other** prompts, $r(k)$ from the first figure, $c=0$;
# - **simulated**: a replay of the answer sheet gives the guesses in every step, priced with $r(k)$;
# - **measured**: five engines answer in turns, and only the time of decode steps counts.

# %% key="columns-code"
half = len(prompts) // 2
alpha = replay(prompts[half:], greedy[half:], prompt_lookup).acceptance  # calibrated on the other half
judged = prompts[: min(half, 6)]
engines = {"plain": plain} | {
    k: ContinuousEngine.load("course-tiny", speculative="prompt-lookup", draft_tokens=k, **options)
    for k in lengths
}
cost_now = measure_step_cost("course-tiny", (1,), sorted({0, 3, *lengths}), tokens=12, rounds=1, **options)
runs = race(engines, judged, max_tokens=48)
base = runs["plain"]
theory, simulated, measured = {}, {}, {}
for k in lengths:
    paper = replay(judged, base.answers, prompt_lookup, k)
    theory[k] = speculative_tokens(alpha, k) / cost_now.relative(k)
    simulated[k] = len(base.steps) * cost_now(0) / cost_now.of(paper)
    measured[k] = base.seconds / runs[k].seconds
    print(
        f"k={k}: {len(paper.steps)} steps on paper, {len(runs[k].steps)} in the engine, answers equal: "
        f"{runs[k].answers == base.answers}; speed-up {theory[k]:.2f} theory, {simulated[k]:.2f} simulated, "
        f"{measured[k]:.2f} measured"
    )

# %% key="columns-figure"
fig, ax = figure(
    "Prompt lookup, one request at a time",
    "guesses per step k",
    "speed-up over plain decoding",
    xticks=lengths,
)
for column, style in ((theory, THEORY), (simulated, SIMULATED), (measured, MEASURED)):
    points = {} if column is theory else {"linestyle": ""}
    ax.plot(lengths, list(column.values()), **(style | points))
for name, column in (("theory", theory), ("simulated", simulated), ("measured", measured)):
    ax.annotate(f"  {name}", (8, column[8]), va="center")
ax.axhline(1, color="#999999", linewidth=1)
_ = ax.set(xlim=(0.5, 10), ylim=0)

# %% [markdown] key="columns-reading" lang="zh" partner="90c31083"
# 步数在纸上和引擎里一步不差，答案逐个 token 相同。所以仿真与实测之间若有差距，只可能来自时间：机器在标定之后变了速度，
# $r(k)$ 随上下文变大，或者没量过的 $k$ 靠插值估得不准。理论则多错一处：它以为每一步都有 $k$ 个猜测，而提示查找常常什么也没找到，
# 那样的一步只出一个 token，也只花一步的钱。
#
# 看步数怎么随 $k$ 减少：头几个猜测省得最多，往后越省越少，而 $r(k)$ 照涨不误。
# 省下的步抵不过变贵的步，加速比就到 1 以下。哪个 $k$ 最好，由你机器上的 $r(k)$ 说了算。

# %% [markdown] key="columns-reading" lang="en" partner="e1fe413a"
# Steps on paper and steps in the engine agree to the last one, and the answers agree token by token. So
# whatever lies between simulated and measured is a matter of time: the machine has changed its speed since
# it was calibrated, $r(k)$ grows with the context, or interpolation is off for a $k$ that was not timed. Theory
# errs once more: it assumes $k$ guesses in every step, while prompt lookup often finds none, and such a
# step gives one token for the price of one step.
#
# See how the steps fall with $k$: the first guesses save most, later ones less and less, while $r(k)$ goes on
# rising. Where the steps saved don't pay for those made dearer, the speed-up is below 1. Which $k$ is best is
# decided by $r(k)$ on your machine.

# %% [markdown] key="draft" lang="zh" partner="7ff4dfd6"
# ## 草稿模型：便宜多少才够
#
# `course-draft` 和 `course-tiny` 共用分词器，参数不到它的四分之一，可以当草稿模型。它每一步都有话说，但每个猜测都要它自己跑一步。
# 成本比 $c$ 是量出来的：两个模型各自解码，比较每一步的时间。

# %% [markdown] key="draft" lang="en" partner="c32500e6"
# ## A draft model: how cheap is cheap enough
#
# `course-draft` shares its tokenizer with `course-tiny` and has less than a quarter of its parameters, so
# it can draft. It has something to say at every step, but each guess costs a step of its own. The cost
# ratio $c$ is measured: both models decode by themselves, and the times of their steps are compared.

# %% key="draft-code"
drafters = {"plain": plain, "draft alone": ContinuousEngine.load("course-draft", **options)} | {
    k: ContinuousEngine.load("course-tiny", speculative="course-draft", draft_tokens=k, **options)
    for k in (1, 2, 4)
}
other = race({4: drafters[4]}, prompts[half : half + 3], max_tokens=48)[4]  # calibrated on other prompts
draft_alpha = other.speculation.acceptance
runs = race(drafters, judged[:4], max_tokens=48)
base, alone = runs["plain"], runs["draft alone"]
c = (alone.seconds / len(alone.steps)) / (base.seconds / len(base.steps))
by_formula = {k: speculative_tokens(draft_alpha, k) / (cost_now.relative(k) + k * c) for k in (0, 1, 2, 4)}
draft_gain = {k: base.seconds / runs[k].seconds for k in (1, 2, 4)}
print(f"acceptance {draft_alpha:.2f}, cost ratio {c:.2f}, answers equal: {base.answers == runs[4].answers}")
for k, gain in draft_gain.items():
    print(f"k={k}: speed-up {by_formula[k]:.2f} by the formula, {gain:.2f} measured")
best = max(by_formula, key=by_formula.get)
print(f"the formula advises k = {best}" + (": do not draft" if best == 0 else ""))
cheap = max(range(1, 9), key=lambda k: speculative_speedup(draft_alpha, k, 0.02))
print(
    f"at c = 0.02 it would advise k = {cheap}, for {speculative_speedup(draft_alpha, cheap, 0.02):.2f} times"
)

# %% [markdown] key="draft-reading" lang="zh" partner="a1bb61e3"
# 参数少得多，一步却没便宜那么多：省下的是读权重的时间，每层、每次调用的固定开销只随层数减半，模型越小，这一份越重。
# $c$ 一高，公式即使对最好的 $k$ 也许诺不了多少；实测还不一定够得着，因为每次猜测都要另走一趟调度、补读和核对，公式里没有它们。
# 最后一行换一对模型，并取 $r=1$：0.6B 的草稿配 32B 的主模型，读权重占去时间时 $c\approx0.02$，同样的接受率就值钱了。
# **要的不是小草稿，是相对便宜的草稿。** 没有这样一对模型，还有提示查找：它的 $c$ 是零，要过的关只剩 $r(k)$。
# （`bench-30m` 的权重是随机的，没有谁能替它猜，所以不参加。）

# %% [markdown] key="draft-reading" lang="en" partner="d5372827"
# Far fewer parameters, and yet a step that is not as much cheaper: it saves time in reading weights, while the
# fixed cost per layer and per call only halves with the layers, and weighs the more the smaller the model. With
# a high $c$ the formula promises little even for the best $k$, and the measurement need not reach that: drafting
# takes a trip of its own through planning, catching up and checking, of which the formula knows nothing. The
# last line tries another pair, with $r=1$: a draft of 0.6B for a main model of 32B has $c\approx0.02$ where
# reading weights takes the time, and then the same acceptance is worth a lot. **What you want is not a small
# draft but a relatively cheap one.** Without such a pair there is prompt lookup: its $c$ is zero, and only
# $r(k)$ is left to beat. (`bench-30m` has random weights, nobody can guess for it, so it stays out.)

# %% [markdown] key="noon" lang="zh" partner="ebce1097"
# ## 中午：批大了，空位没了
#
# 批处理和投机解码抢的是同一样东西：一步里闲着的算术。这里重新量一遍 $r(k)$，再让引擎在批大小 1、16、48 上各跑一遍，
# 贪心的文本和温度 1 的文本各一遍。预测是重放得到的每步 token 数除以 $r(k)$，$k$ 取这类文本的平均猜测个数。

# %% [markdown] key="noon" lang="en" partner="30f08d33"
# ## Noon: a large batch has no room
#
# Batching and speculation compete for one thing: the idle arithmetic of a step. Here $r(k)$ is measured anew,
# and then the engine runs at batch sizes 1, 16 and 48, once on greedy text and once at temperature 1. The
# prediction is the replay's tokens per step over $r(k)$, with that text's mean number of guesses for $k$.

# %% key="noon-code"
crowd = [t[s : s + 64] for s in (100, 200, 300, 400) for t in written][:48]
pair = {"plain": plain, "lookup": engines[4]}
batches = [1, 16, len(crowd)]
cost_now = measure_step_cost("course-tiny", batches, (0, 1, 2, 3, 4), tokens=5, rounds=1, **options)
gains, predicted = {}, {}
for text, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
    for batch in batches:
        group = crowd[: max(4, batch)] * 3
        runs = race(pair, group, max_tokens=32, batch=batch, temperature=temperature)
        gains[text, batch] = runs["plain"].seconds / runs["lookup"].seconds
        paper = replay(group, runs["plain"].answers, prompt_lookup, 4)
        guesses = np.mean([s.drafted for s in paper.steps])
        predicted[text, batch] = paper.tokens_per_step / cost_now.relative(guesses, batch)

fig, ax = figure(
    "The same guesses, larger batches", "batch size", "speed-up over plain decoding", xticks=batches
)
for text, colour in (("greedy", "orange"), ("temperature 1", "purple")):
    ax.plot(batches, [predicted[text, b] for b in batches], **(THEORY | {"color": COLOURS[colour]}))
    found = [gains[text, b] for b in batches]
    ax.plot(batches, found, linestyle="", marker="s", color=COLOURS[colour], label=text)
    print(f"{text:14s}" + "".join(f"  batch {b}: {g:.2f}" for b, g in zip(batches, found, strict=True)))
ax.axhline(1, color="#999999", linewidth=1)
ax.set_ylim(0)
_ = ax.legend()

# %% [markdown] key="noon-reading" lang="zh" partner="f04535e4"
# 方块是实测，虚线是预测。好猜的文本，赚头随批变大而缩小；难猜的文本本来就没什么可赚，批大小为 1 时也可能已经在亏。
# 大批的实测通常还低于预测：各请求的猜测个数不同，注意力要分组计算；而且猜得准的请求先走，批在尾声里变小。
# 算术一成为瓶颈，每个猜错的 token 都按全价收费，跌到 1 以下就不奇怪了。所以生产引擎按负载**动态地**减少猜测个数，忙时减到 0。

# %% [markdown] key="noon-reading" lang="en" partner="013bf619"
# Squares are measured, dashes predicted. On text that is easy to guess the gain shrinks as the batch grows;
# on text that is hard to guess there was little to gain to begin with, and even batch size 1 may be a loss.
# In large batches the measurement is mostly below the prediction: requests differ in their numbers of
# guesses, so attention works in groups, and those with good guesses leave early, so that the batch thins out
# towards the end. Once arithmetic is the bottleneck, each wrong guess is charged in full, and a fall below 1
# is no surprise. That is why production engines lower the number of guesses **with the load**, down to 0 when
# they are busy.

# %% [markdown] key="exact" lang="zh" partner="302647cb"
# ## 采样时也一点不差
#
# 贪心时答案相同，上面已经逐个 token 核对过。（核对用的是 float32。在 bfloat16 里，两个分数几乎相等的 token 可能因为一步里同伴的多少而换位，
# 不开投机、只换批大小也会这样。）温度大于 0 时，保证的是**分布**相同：猜测者以 $q$ 抽出 $x$，
# 以概率 $\min(1,p(x)/q(x))$ 保留，否则从 $\max(p-q,0)$ 归一化后的分布里重抽。证明只要三行：
#
# 1. 保留且结果是 $x$ 的概率：$q(x)\min(1,p(x)/q(x))=\min(p(x),q(x))$。
# 2. 不保留的概率：$1-\sum\min(p,q)=\sum\max(p-q,0)$，正好是重抽分布的归一化常数。
# 3. 两项相加：$\min(p,q)+\max(p-q,0)=p(x)$。
#
# 顺带得到 $\alpha=\sum\min(p,q)$：两个分布重叠的面积。五个 token 的玩具足够看清，也看清一个常见的错误：重抽时直接用 $p$。

# %% [markdown] key="exact" lang="en" partner="46cfea49"
# ## Just as exact with sampling
#
# Greedy answers are the same; we have compared them token by token. (In float32, that is. In bfloat16, two
# tokens with almost equal scores may change places with the company in their step, as they may without
# speculation when the batch size changes.) Above temperature 0 it is the **distribution** that is
# the same: the guesser draws $x$ from $q$; it stays with probability $\min(1,p(x)/q(x))$, and otherwise the
# token is drawn anew from $\max(p-q,0)$, scaled to add up to one. The proof takes three lines:
#
# 1. The guess stays and is $x$, with probability $q(x)\min(1,p(x)/q(x))=\min(p(x),q(x))$.
# 2. It does not stay, with probability $1-\sum\min(p,q)=\sum\max(p-q,0)$, just what the redraw is scaled by.
# 3. Add the two: $\min(p,q)+\max(p-q,0)=p(x)$.
#
# As a gift, $\alpha=\sum\min(p,q)$: the area in which the two laws overlap. A toy of five tokens shows it,
# and a popular mistake too: to draw anew from $p$ itself.

# %% key="exact-code" tags=["nbval-check-output"]
p = np.array([0.40, 0.30, 0.15, 0.10, 0.05])
q = np.array([0.20, 0.25, 0.05, 0.45, 0.05])
rng, n = np.random.default_rng(5), 200_000
guesses = rng.choice(5, n, p=q)
stays = rng.random(n) < np.minimum(1, p / q)[guesses]
rest = np.maximum(p - q, 0)
results = {}
for name, law in (("right", rest / rest.sum()), ("redrawn from p", p)):
    out = np.where(stays, guesses, rng.choice(5, n, p=law))
    results[name] = np.bincount(out, minlength=5) / n
print(f"kept: theory {np.minimum(p, q).sum():.3f}, simulated {stays.mean():.3f}")
for name, share in results.items():
    print(f"{name:15s}", share.round(3), f"largest error {abs(share - p).max():.3f}")

# %% key="exact-figure"
fig, ax = figure("What comes out", "token", "probability", xticks=range(5))
x = np.arange(5)
bars = {
    "model p": (p, "black"),
    "guesser q": (q, "sky"),
    "right rule": (results["right"], "blue"),
    "redrawn from p": (results["redrawn from p"], "orange"),
}
for i, (name, (share, colour)) in enumerate(bars.items()):
    ax.bar(x + 0.2 * (i - 1.5), share, 0.2, color=COLOURS[colour], label=name)
_ = ax.legend()

# %% [markdown] key="int8" lang="zh" partner="019a9ed0"
# ## INT8：每行一把尺子
#
# 第二家供应商卖的是少读字节。权重矩阵的每一行取绝对值最大的数，把它对到 127，其余按比例取整：
#
# $$s=\frac{\max|w|}{127},\qquad \hat w=s\cdot\text{round}(w/s)$$
#
# 为什么每行一把尺子，而不是整个矩阵一把？拿 `course-tiny` 第一层的查询、键、值矩阵来看：误差以权重的均方根为单位。

# %% [markdown] key="int8" lang="en" partner="a1e7b0c5"
# ## INT8: a ruler for each row
#
# The second vendor sells fewer bytes to read. In each row of a weight matrix, the largest absolute value is
# put at 127, and the others are rounded in proportion:
#
# $$s=\frac{\max|w|}{127},\qquad \hat w=s\cdot\text{round}(w/s)$$
#
# Why a ruler for each row and not one for the whole matrix? Look at the matrix of queries, keys and values
# in the first layer of `course-tiny`, with errors in units of the weights' root mean square.

# %% key="int8-code"
decoder, _ = load_decoder("course-tiny", torch.float32, attention="torch")
weight = decoder.layers[0].qkv.weight
integers, scale = quantize(weight)
per_row = integers.float() * scale[:, None] - weight
step = weight.abs().max() / 127
per_matrix = (weight / step).round() * step - weight
size = weight.square().mean().sqrt()
print("row 0:", integers[0, :8].tolist(), f"x {scale[0]:.5f}")

fig, ax = figure(
    "A ruler for each row errs less", "error (root mean square of the weights = 1)", "share of weights"
)
bins = np.linspace(-0.08, 0.08, 65)
for name, error, colour in (("one per matrix", per_matrix, "orange"), ("one per row", per_row, "blue")):
    relative = (error / size).flatten().numpy()
    counts, _ = np.histogram(relative, bins)
    ax.stairs(counts / relative.size, bins, fill=True, alpha=0.6, color=COLOURS[colour], label=name)
    print(f"{name:15s} error {np.sqrt((relative**2).mean()):.4f} of the weights' size")
_ = ax.legend()

# %% [markdown] key="quality" lang="zh" partner="ac17563c"
# 误差小不等于无害，要看模型的话。下面用留出文本（模型没见过的标准库模块）量困惑度的对数：平均每个 token 让模型多惊讶，单位 nats。
# 同一张表里放上 `bench-30m` 的速度：它的形状像真模型，权重随机，没有质量可言，只量时间。

# %% [markdown] key="quality" lang="en" partner="91db9cf9"
# A small error need not be harmless, so ask the model. On held-out text (modules of the standard library
# that it has never seen) we measure the logarithm of perplexity: how much each token surprises the model on
# average, in nats. Beside it stands the speed of `bench-30m`: the shape of a real model and random weights,
# so there is no quality to speak of, and only time is measured.

# %% key="quality-code"
reference = "bfloat16" if refusal("bfloat16") is None else "float32"  # what this processor multiplies
quality = measure(["course-tiny"], ["float32", reference, "int8"], Plan((1,), rounds=1, windows=8))
sizes = (1, 2, 4, 8, 16, 48)
speed = measure(["bench-30m"], [reference, "int8"], Plan(sizes, rounds=2)).models["bench-30m"]
for name, found in quality.models["course-tiny"].items():
    print(f"{name:9s} {found.weight_bytes / 1e6:5.1f} MB  {found.nats_per_token:.4f} nats/token")
int8_gain = {b: speed["int8"].gain_over(speed[reference], b) for b in sizes}
print(f"\nbench-30m, int8 against {reference}")
for b in sizes:
    print(
        f"batch {b:2d}: {speed[reference].step_ms(b):6.2f} ms -> {speed['int8'].step_ms(b):6.2f} ms, {int8_gain[b]:.2f} times"
    )

# %% [markdown] key="turning" lang="zh" partner="e3fd1477"
# ## 转折点
#
# 第 01 课的 $H(b)=\alpha b+\tau_0$ 又来了：INT8 降低 $\tau_0$（少读字节），却可能抬高 $\alpha$（边乘边还原）。两条线相交的地方就是转折点：
#
# $$b^*=\frac{\Delta\tau_0}{\Delta\alpha}$$

# %% [markdown] key="turning" lang="en" partner="4c2a5321"
# ## The turning point
#
# Lesson 01's $H(b)=\alpha b+\tau_0$ is back: INT8 lowers $\tau_0$ (fewer bytes to read) and may raise $\alpha$
# (weights are restored as they are multiplied). Where the two lines meet is the turning point:
#
# $$b^*=\frac{\Delta\tau_0}{\Delta\alpha}$$

# %% key="turning-code"
lines = {}
fig, ax = figure("Fewer bytes, more arithmetic", "batch size", "decode step (ms)", xticks=(1, 8, 16, 48))
for name, colour in ((reference, "blue"), ("int8", "orange")):
    times = np.array([speed[name].step_ms(b) for b in sizes])
    lines[name] = np.polyfit(sizes, times, 1, w=1 / times)  # equal relative weight
    ax.plot((0, 48), np.polyval(lines[name], (0, 48)), **(THEORY | {"color": COLOURS[colour]}))
    [line] = ax.plot(sizes, times, linestyle="", marker="s", color=COLOURS[colour])
    label(ax, line, name)
_ = ax.set(ylim=0, xlim=(0, 56))
(slope, fixed), (slope8, fixed8) = lines[reference], lines["int8"]
print(f"tau0 {fixed:.1f} -> {fixed8:.1f} ms, alpha {slope:.2f} -> {slope8:.2f} ms per row")
if fixed8 < fixed and slope8 > slope:
    print(
        f"int8 pays below a batch of about {(fixed - fixed8) / (slope8 - slope):.0f} by the lines; see the table above"
    )
else:
    print("the lines don't cross; see the table above")

ridge = 989e12 / 4.8e12  # an H200: dense bf16 operations over bytes per second, arithmetic only
print(f"H200 on paper: 2 times up to batch {ridge / 2:.0f}, then less, and nothing from {ridge:.0f} on")

# %% [markdown] key="turning-reading" lang="zh" partner="6ba62edd"
# 质量几乎没掉，速度要看批。许多 CPU 对 bfloat16 有专门的矩阵指令，却没有「INT8 权重乘 bfloat16 激活」的，
# 于是边乘边还原，批一大，算术就成了瓶颈。直线只是概括：行数少和行数多时引擎走两条路，INT8 从哪个批开始亏，以上面的表为准。
#
# 最后一行是**算术**，不是测量：GPU 的算术多得多，转折点在一百上下才开始。
# 投机解码在那里用的是同一份余量：$b(k+1)$ 不超过屋脊点，多算的 token 才近乎免费。
# 能把激活也变成 INT8 的内核（SmoothQuant 一类）可以两头都赚，代价是更难保住质量。

# %% [markdown] key="turning-reading" lang="en" partner="90c7a038"
# Hardly any quality is lost, and the speed depends on the batch. Many CPUs have matrix instructions for
# bfloat16 and none for INT8 weights times bfloat16 activations, so weights are restored while they are
# multiplied, and in a large batch that arithmetic is the bottleneck. The lines are only a summary, since few
# rows and many take two routes through the engine: from which batch on INT8 loses, read off the table above.
#
# The last line is **arithmetic** and not a measurement: a GPU has so much more of it that the turn begins
# only around a hundred. Speculation there lives on the same reserve: as long as $b(k+1)$ stays below the
# ridge point, further tokens are almost free. Kernels that take INT8 activations as well (in the manner of
# SmoothQuant) can win at both ends, at the price of quality that is harder to keep.

# %% [markdown] key="decide" lang="zh" partner="d40146b9"
# ## 结账

# %% [markdown] key="decide" lang="en" partner="86edfcea"
# ## Settling the account

# %% key="decide-code"
noon = batches[-1]
offers = {
    "speculation, greedy text": (guessed_speculation, gains["greedy", 1], gains["greedy", noon]),
    "speculation, temperature 1": (None, gains["temperature 1", 1], gains["temperature 1", noon]),
    "int8": (guessed_int8, int8_gain[1], int8_gain[48]),
}
print("                            night (1)   noon (48)   you said")
for name, (said, night, day) in offers.items():
    bet = f"{said[1]:.1f}, {said[48]:.1f}" if said else "-"
    print(f"{name:28s}{night:9.2f}{day:12.2f}   {bet}")
for time, column in (("night", 1), ("noon", 2)):
    name, best = max(((n, o[column]) for n, o in offers.items()), key=lambda pair: pair[1])
    print(f"at {time}: " + (f"{name}, {best:.2f} times" if best > 1.05 else "neither"))

# %% [markdown] key="decide-reading" lang="zh" partner="685c5a57"
# 投机解码量的是 `course-tiny`，INT8 量的是 `bench-30m`，两行的倍数属于各自的模型；可以比的是**形状**：夜里赚到的，到中午还剩多少。
# 两件商品花的都是同一样东西，读权重时闲着的算术。夜里它多得是，中午批处理已经把它用掉了。
# 供应商的倍数还要追问一句：是跟多慢的引擎比的？普通的一步越快，留给投机解码的越少。

# %% [markdown] key="decide-reading" lang="en" partner="ad96917b"
# Speculation was measured on `course-tiny` and INT8 on `bench-30m`, so each row's factors belong to its own
# model; what can be compared is the **shape**: how much of the night's gain is left at noon. Both products
# spend the same thing, arithmetic that idles while weights are read. At night there is plenty of it, and at
# noon batching has used it up. And ask how slow an engine the vendor's factor was measured against: the faster
# the plain step, the less is left to speculation.

# %% [markdown] key="exercises" lang="zh" partner="bebb4768"
# ## 练习
#
# 写完运行单元格，`check` 会给出最小的失败例子和可能的原因。`hint("10.1")` 给提示。
#
# **10.1** 接受率 `alpha`，成本比 `cost`，$r=1$。从 0 到 `most` 选最好的猜测个数，返回它和加速比；一样好时取小的。

# %% [markdown] key="exercises" lang="en" partner="acd9da62"
# ## Exercises
#
# Run the cell when you have written your answer: `check` shows the smallest case that fails and the likely
# cause. `hint("10.1")` gives a hint.
#
# **10.1** Acceptance `alpha`, cost ratio `cost`, and $r=1$. Choose the best number of guesses from 0 to `most`,
# and return it with its speed-up; of two that are as good, the smaller.


# %% key="ex1" exercise="10.1" tags=["nbval-check-output"]
def best_draft(alpha, cost, most):
    raise NotImplementedError


check("10.1", best_draft)


# %% key="ex1-solution" solution="10.1" tags=["nbval-check-output"]
def best_draft(alpha, cost, most):
    speedups = [sum(alpha**i for i in range(k + 1)) / (1 + k * cost) for k in range(most + 1)]
    return speedups.index(max(speedups)), max(speedups)


check("10.1", best_draft)

# %% [markdown] key="exercise2" lang="zh" partner="4f85bb4c"
# **10.2** 猜测者以 `q` 抽出了 `guess`，主模型的分布是 `p`（都是列表）。返回两样：保留的概率，和不保留时重抽用的分布（列表，和为一）。
# `judge_rule` 按你的规则抽十万次，用卡方检验看结果像不像 `p`。

# %% [markdown] key="exercise2" lang="en" partner="f2d66d27"
# **10.2** The guesser has drawn `guess` from `q`, and the model's law is `p` (both are lists). Return two things:
# the probability with which the guess stays, and the law from which to draw anew otherwise (a list that adds
# up to one). `judge_rule` draws a hundred thousand times by your rule, and asks a chi-square test whether the
# result looks like `p`.


# %% key="ex2" exercise="10.2" tags=["nbval-check-output"]
def rule(guess, p, q):
    raise NotImplementedError


check("10.2", rule)


# %% key="ex2-solution" solution="10.2" tags=["nbval-check-output"]
def rule(guess, p, q):
    rest = [max(a - b, 0) for a, b in zip(p, q, strict=True)]
    return min(1, p[guess] / q[guess]), [each / sum(rest) for each in rest]


check("10.2", rule)

# %% key="ex2-judge"
print(judge_rule(rule))

# %% [markdown] key="exercise3" lang="zh" partner="874272ba"
# **10.3** 写一个提示查找：在 `tokens` 里找最后两个 token 上一次（最近的一次）出现的位置，返回跟在它们后面的至多 `count` 个 token，没有就返回空列表。
# `judge_guess` 先拿它重放一份答案，再把它装进真引擎：`ContinuousEngine.load("course-tiny", speculative=look_up)`。

# %% [markdown] key="exercise3" lang="en" partner="71cd79c4"
# **10.3** Write a prompt lookup: find where the last two tokens of `tokens` stood before (the latest such place),
# and return at most `count` of the tokens that followed them; an empty list if there is no such place.
# `judge_guess` replays an answer sheet with it, and then puts it into the real engine:
# `ContinuousEngine.load("course-tiny", speculative=look_up)`.


# %% key="ex3" exercise="10.3" tags=["nbval-check-output"]
def look_up(tokens, count):
    raise NotImplementedError


check("10.3", look_up)


# %% key="ex3-solution" solution="10.3" tags=["nbval-check-output"]
def look_up(tokens, count):
    for at in range(len(tokens) - 3, -1, -1):
        if tokens[at : at + 2] == tokens[-2:]:
            return tokens[at + 2 : at + 2 + count]
    return []


check("10.3", look_up)

# %% key="ex3-judge"
print(judge_guess(look_up))

# %% [markdown] key="exercise4" lang="zh" partner="5005ce15"
# **10.4** 量化一个矩阵（行的列表）：返回整数（-127 到 127）和每行的缩放因子。没有全零的行。

# %% [markdown] key="exercise4" lang="en" partner="86d53b8f"
# **10.4** Quantize a matrix (a list of rows): return the integers, from -127 to 127, and the scale of each row.
# No row is all zeros.


# %% key="ex4" exercise="10.4" tags=["nbval-check-output"]
def quantize_rows(rows):
    raise NotImplementedError


check("10.4", quantize_rows)


# %% key="ex4-solution" solution="10.4" tags=["nbval-check-output"]
def quantize_rows(rows):
    scales = [max(abs(x) for x in row) / 127 for row in rows]
    return [[round(x / s) for x in row] for row, s in zip(rows, scales, strict=True)], scales


check("10.4", quantize_rows)

# %% key="close"
for engine in {*engines.values(), *drafters.values()}:
    engine.shutdown()

# %% [markdown] key="summary" lang="zh" partner="cfdf1360"
# ## 星期一怎么做
#
# 1. 拿一天的日志，用提示查找重放一遍：每步能出几个 token，一个下午就知道，不用碰线上服务。
# 2. 在自己的机器、自己的批大小上量 $r(k)$；每步的 token 数超不过 $r(k)+kc$，就别开。
# 3. 看监控时分清 $\alpha$ 和 accepted/drafted，别把后者代进公式。
# 4. 草稿模型先比 $\alpha$ 和 $c+r(1)-1$；$\alpha$ 不比它大就别上。让猜测个数随负载下降。
# 5. INT8 先量两个数：你自己文本上的困惑度，和你最忙时那个批大小上的一步耗时。

# %% [markdown] key="summary" lang="en" partner="515f2d6e"
# ## What to do on Monday
#
# 1. Take a day of logs and replay them with prompt lookup: an afternoon tells the tokens per step, without
#    touching the service.
# 2. Measure $r(k)$ on your own machine at your own batch size; unless the tokens per step exceed $r(k)+kc$,
#    leave speculation off.
# 3. On a dashboard, tell $\alpha$ from accepted/drafted, and never put the latter into the formula.
# 4. Of a draft model compare $\alpha$ and $c+r(1)-1$ first; unless $\alpha$ is the larger, leave it. Let the
#    number of guesses fall with the load.
# 5. Of INT8 measure two things first: perplexity on text of your own, and the step time at the batch size of
#    your busiest hour.

# %% [markdown] key="references" lang="zh" partner="da5d3ec9"
# ## 参考文献
#
# - Y. Leviathan, M. Kalman, Y. Matias, *Fast Inference from Transformers via Speculative Decoding*, ICML 2023，arXiv:2211.17192。公式和证明的出处。
# - C. Chen 等, *Accelerating Large Language Model Decoding with Speculative Sampling*, 2023，arXiv:2302.01318。
# - T. Dettmers 等, *LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale*, NeurIPS 2022，arXiv:2208.07339。
# - G. Xiao 等, *SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models*, ICML 2023，arXiv:2211.10438。
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore architectures*, CACM 2009。

# %% [markdown] key="references" lang="en" partner="efd30b93"
# ## References
#
# - Y. Leviathan, M. Kalman, Y. Matias, *Fast Inference from Transformers via Speculative Decoding*, ICML 2023,
#   arXiv:2211.17192. The source of formula and proof.
# - C. Chen et al., *Accelerating Large Language Model Decoding with Speculative Sampling*, 2023, arXiv:2302.01318.
# - T. Dettmers et al., *LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale*, NeurIPS 2022,
#   arXiv:2208.07339.
# - G. Xiao et al., *SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models*,
#   ICML 2023, arXiv:2211.10438.
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, CACM 2009.
