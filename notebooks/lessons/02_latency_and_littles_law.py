# %% [markdown] key="title" lang="zh" partner="a746e082"
# # 02 · 延迟与利特尔法则
#
# 值班看板上，服务里平均有 12 个在途请求，每秒进来 40 个。
# 供应商的报告写着「平均延迟 80 ms」，还附了一张漂亮的直方图。看板和报告，你信哪个？
#
# 学完这一课，你能做三件事：
#
# - 把一个请求的延迟拆成网络、排队、预填充、解码四段，说出负载一高，涨的是哪一段；
# - 用两个互不知情的来源核对一份延迟报告，几分钟之内看出它漏了谁；
# - 读懂一个 P99：它背后有多少请求，能不能拿来签 SLO。
#
# 用的还是第 01 课的服务器和模型，不需要 GPU，也不需要联网。

# %% [markdown] key="title" lang="en" partner="8af097fb"
# # 02 · Latency and Little's law
#
# The dashboard on the wall shows 12 requests in flight on average, and 40 arriving per second. The vendor's
# report says "mean latency 80 ms", with a handsome histogram. Dashboard or report, whom do you believe?
#
# After this lesson you can
#
# - take a request's latency apart into network, queue, prefill and decode, and say which of them grows
#   with load;
# - check a latency report against a second source that knows nothing of it, and see within minutes whom it
#   left out;
# - read a P99: how many requests stand behind it, and whether you can sign an SLO on it.
#
# Server and model are those of lesson 01; no GPU and no network are needed.

# %% key="imports"
import asyncio
import time

import numpy as np

from servinglib.course import check, hint
from servinglib.engines.registry import load_engine
from servinglib.experiments.batching_curve import (
    Shape,
    measure_batch_times,
    poisson_arrivals,
    simulate_under_load,
)
from servinglib.experiments.columns import BatchTimes, RunSpeed
from servinglib.experiments.littles_law import measure_with_gauge
from servinglib.plots import COLOURS, THEORY, figure
from servinglib.policies.batching import DynamicBatching
from servinglib.statistics import quantile, quantile_interval
from simulations.serving import EmpiricalBatchTime
from simulations.theory.batching import DynamicBatchingChain
from simulations.theory.littles_law import littles_law, window_account

# %% [markdown] key="predict" lang="zh" partner="dbd70643"
# ## 先押注
#
# 只凭看板上的两个数，你认为平均延迟是多少毫秒？再猜一个：我们的服务器跑到容量的七成时，
# 一个请求的延迟里有多大比例花在排队上？改成你的答案，本课结尾对账。

# %% [markdown] key="predict" lang="en" partner="b5bcea6c"
# ## Place your bet
#
# From the two numbers on the dashboard alone, what is the mean latency in milliseconds? And another one:
# with our server at seven tenths of its capacity, what share of a request's latency is spent in the queue?
# Put your answers in; the end of the lesson settles the account.

# %% key="guess"
guessed_latency_ms = 80.0
guessed_queue_share = 0.1

# %% [markdown] key="stamps" lang="zh" partner="4a999028"
# ## 一个请求，六个时间戳
#
# 快递包裹每到一站盖一个章，两个章一减，就知道它在哪一站耽搁了。请求也一样，每经一手都盖一个时间戳：
#
# - `arrival`：它**本该**发出的时刻；`received`：服务器收下它；
# - `scheduled`：它离开队列，开始计算；`first_token`：第一个 token 出来；
# - `finished`：最后一个 token 出来；`completed`：客户端拿到完整答案。
#
# 相邻两章之差就是一段。网络有两小段，一去一回；这里客户端和服务器同在一个进程，
# 所以「网络」只是线程之间交接的工夫。时间戳是整数纳秒，各段相加与总延迟**一纳秒不差**，
# 单元格最后一行就断言这一点。

# %% [markdown] key="stamps" lang="en" partner="b7f1cfa9"
# ## One request, six stamps
#
# A parcel is stamped at every depot, and the difference of two stamps tells where it lay. A request is
# stamped by everyone who holds it:
#
# - `arrival`: when it was **meant** to be sent; `received`: the server took it;
# - `scheduled`: it left the queue and computation began; `first_token`: the first token was out;
# - `finished`: the last token was out; `completed`: the client held the whole answer.
#
# Each part is the difference of two neighbours. The network has two pieces, there and back; since client
# and server live in one process here, "network" is only the time that threads need to hand things over.
# Stamps are whole nanoseconds, so the parts add up to the total **to the nanosecond**, which the last
# line of the cell asserts.

# %% key="stamps-code"
engine = load_engine("transformers", "bench-30m")
engine.warm_up()
shape = Shape(prompt_tokens=32, output_tokens=12)  # every request of this lesson

(timeline,) = (await measure_with_gauge(engine, 8, [0.0], shape)).timelines
for stage in ("arrival", "received", "scheduled", "first_token", "finished", "completed"):
    print(f"{stage:12s} +{(getattr(timeline, stage) - timeline.arrival) / 1e6:8.3f} ms")
print({part: f"{ns / 1e6:.3f} ms" for part, ns in timeline.parts.items()})
assert sum(timeline.parts.values()) == timeline.total

# %% [markdown] key="loads" lang="zh" partner="5ee5ff1e"
# ## 负载一高，涨的是哪一段
#
# 先像第 01 课那样量出批耗时，得到容量；再让泊松到达的请求打两场：轻载是容量的一成，重载是七成。
# `max_batch_size` 是 8，窗口是 0。

# %% [markdown] key="loads" lang="en" partner="635a217c"
# ## Which part grows with load?
#
# Time the batches as in lesson 01, which gives the capacity. Then two runs with Poisson arrivals: a light
# load of one tenth of the capacity, and a heavy one of seven tenths. `max_batch_size` is 8, the window 0.

# %% key="loads-code"
batch_times = measure_batch_times(engine, sizes=(1, 2, 4, 8), repeats=3, shape=shape)
capacity = batch_times.law.capacity(8)
rates = {"light": 0.1 * capacity, "heavy": 0.7 * capacity}
arrivals = {load: poisson_arrivals(rate, count=round(8 * rate), seed=2) for load, rate in rates.items()}
runs = {load: await measure_with_gauge(engine, 8, arrivals[load], shape) for load in rates}

parts = {}
for load, run in runs.items():
    assert all(sum(t.parts.values()) == t.total for t in run.timelines)
    parts[load] = {part: np.array([t.parts[part] for t in run.timelines]) / 1e6 for part in timeline.parts}

fig, ax = figure("Under load, the queue grows most", "mean latency (ms)", "", size=(6.4, 2.6))
for load, by_part in parts.items():
    left = 0.0
    for (part, ms), colour in zip(by_part.items(), COLOURS.values(), strict=False):
        ax.barh(load, ms.mean(), left=left, color=colour, label=part if load == "light" else None)
        left += ms.mean()
    print(f"{load}: {rates[load]:.1f} requests/s,", {p: f"{ms.mean():.1f} ms" for p, ms in by_part.items()})
queue_share = parts["heavy"]["queue"].mean() / left
ax.invert_yaxis()
_ = ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.28))

# %% [markdown] key="loads-reading" lang="zh" partner="b973c907"
# 排队那一段拉长得最多。轻载时也要排一会儿：来的时候正有一批在算，就得等它算完。
# 批变大了，$\alpha b$ 跟着涨，所以预填充和解码也长了一些；网络那一小段在图上几乎看不见。
#
# 可见「服务变慢了」是两种病。计算段变长，去查模型、批大小和机器；只有排队段变长，模型没有变慢，是负载高了。
# 队列为什么涨得这么快，第 03 课专门讲。

# %% [markdown] key="loads-reading" lang="en" partner="6f7abb72"
# The queue has stretched most. Even under the light load there is some of it: whoever comes while a batch is
# being computed waits until that is done. Larger batches mean a larger $\alpha b$, so prefill and decode are
# somewhat longer too; the network can hardly be seen.
#
# So "the service has become slow" names two illnesses. If the computing parts are longer, look at the model,
# the batch size, the machine. If only the queue is longer, the model is as fast as ever and the load has
# risen. Why a queue grows so steeply is lesson 03's subject.

# %% [markdown] key="percentiles" lang="zh" partner="46f204a1"
# ## 平均值能相加，百分位数不能
#
# 四段的平均值加起来就是总延迟的平均值。于是有人给每一段各定一个 P99 预算，加起来当作总的 P99。对吗？

# %% [markdown] key="percentiles" lang="en" partner="8d1740fa"
# ## Means add up, percentiles don't
#
# The means of the four parts add up to the mean of the whole. So a team gives each part a P99 budget, and
# takes the sum for the P99 of the whole. Is it?

# %% key="percentiles-code"
total = sum(parts["heavy"].values())
for name, of in (
    ("mean", np.mean),
    ("P50", lambda ms: quantile(ms, 0.5)),
    ("P99", lambda ms: quantile(ms, 0.99)),
):
    added = sum(of(ms) for ms in parts["heavy"].values())
    print(f"{name:4s}: the parts' add up to {added:6.1f} ms, that of the whole is {of(total):6.1f} ms")
for p in (0.5, 0.9, 0.99):
    interval = quantile_interval(total, p)
    print(
        f"P{p * 100:.0f} of {len(total)} requests: {interval.value:.0f} ms, "
        f"95% interval {interval.low:.0f} to {interval.high:.0f} ms"
    )

# %% [markdown] key="percentiles-reading" lang="zh" partner="e1ae7d34"
# 平均值那一行两数相等，P99 那一行不等：排队最久的请求，和解码最慢的请求，通常不是同一个。
# 各段 P99 之和多半偏大，但不保证，所以预算要定在**总延迟**上，再看尾部那些请求的时间花在哪里。
#
# 再看区间。百分位数是从样本里读出来的，换一批请求就会变。P99 的上界若是 `inf`，意思是：
# 样本里没有一个值够格当上界。要多少个请求，95% 区间才有上界？下面问库。

# %% [markdown] key="percentiles-reading" lang="en" partner="a8cf519d"
# In the line of the means the two numbers are equal, in the line of P99 they are not: whoever waited longest
# in the queue is usually not the one with the slowest decode. The sum of P99s tends to be too large, without
# a guarantee, so set the budget on the **whole** latency, and then look where the slow ones spent it.
#
# Now the intervals. A percentile is read off a sample, and another sample gives another. Where the upper
# end of P99 is `inf`, no value of the sample is fit to be an upper bound. How many requests does it take
# until the 95% interval has one? Ask the library.

# %% key="interval-code" tags=["nbval-check-output"]
next(n for n in range(1, 1000) if quantile_interval(range(n), 0.99).high < np.inf)

# %% [markdown] key="slo" lang="zh" partner="671e1903"
# 少于这么多请求的 P99 没有上界，不能签字；而且这个区间假设请求互相独立，排队的请求彼此相像，实情只会更宽。
#
# SLO 是一句能判真假的话，比如「每个请求不超过 `slo` 秒」。达标的请求每秒有多少，叫**有效吞吐量**：
# 出错和被拒的算未达标，运行结束时被截断的两边都不算。下面把 `slo` 定为轻载 P50 的一倍半，看两场各达标多少。

# %% [markdown] key="slo" lang="en" partner="163c66e8"
# A P99 from fewer requests has no upper bound, so don't sign it; and the interval takes requests for
# independent, while those that queue behind each other are alike, so the truth is wider still.
#
# An SLO is a sentence that is true or false of a request, such as "at most `slo` seconds". The requests per
# second for which it is true are the **goodput**: errors and refusals are misses, and requests that the end
# of the run cut off count neither way. Let `slo` be one and a half times the P50 of the light load.

# %% key="slo-code"
slo = 1.5 * quantile(runs["light"].latencies, 0.5)
for load, run in runs.items():
    met = (run.latencies <= slo).sum()
    print(
        f"{load}: throughput {len(run.latencies) / run.duration:.1f}/s, goodput {met / run.duration:.1f}/s, "
        f"{met / len(run.outcomes):.0%} within {slo * 1e3:.0f} ms"
    )

# %% [markdown] key="law" lang="zh" partner="69e07143"
# ## 利特尔法则：一块面积，量两次
#
# 把每个请求画成一根横条，从到达画到离开，长度是它的延迟 $T_i$。某一时刻竖着切一刀，
# 切到几根，里面就有几个请求，这是 $N(t)$。所有横条的总面积，横着加是 $\sum T_i$，竖着加是 $\int N\,dt$。
# 同一块面积，所以两边除以时长 $D$：
#
# $$\bar N = \frac{1}{D}\int_0^D N(t)\,dt = \frac{1}{D}\sum_i T_i = \lambda \bar T$$
#
# 推导里没有泊松，没有指数分布，没有先来先服务，只要求开始和结束时里面都是空的。
# 所以任何服务都服从它：平均在途 = 到达率 × 平均延迟。
# 回到看板，12 个在途，每秒 40 个，平均延迟只能是 $12/40 = 0.3$ 秒。
# 报告若是对的，80 ms 只撑得起 3.2 个在途请求，另外 8.8 个是谁？

# %% [markdown] key="law" lang="en" partner="882be097"
# ## Little's law: one area, measured twice
#
# Draw each request as a bar from its arrival to its departure, as long as its latency $T_i$. Cut through
# the picture at some moment, and the bars that you cut are the requests inside, $N(t)$. The area of all the
# bars is $\sum T_i$ when you add along the bars, and $\int N\,dt$ when you add the cuts. It is one area, so,
# divided by the duration $D$:
#
# $$\bar N = \frac{1}{D}\int_0^D N(t)\,dt = \frac{1}{D}\sum_i T_i = \lambda \bar T$$
#
# There was no Poisson in this, no exponential law, no first come, first served; only an empty system at
# the start and at the end. So every service obeys it: mean number in flight = arrival rate × mean latency.
# Back to the dashboard: with 12 in flight and 40 per second, the mean latency can only be $12/40 = 0.3$
# seconds. If the report were right, 80 ms would account for 3.2 requests in flight. Who are the other 8.8?

# %% [markdown] key="sources" lang="zh" partner="f361e5d8"
# ## 两个互不知情的来源
#
# 既然谁都服从，法则就不能用来检验**服务**，却正好用来检验**测量**，前提是两边来自不同的地方：
#
# - $N$ 来自服务器自己的仪表：`server.statistics` 的 `waiting + running`。一个 asyncio 任务（`watched`，
#   十来行，值得打开看）每隔约 2 ms 读一次，它不认识任何客户端；
# - $T$ 来自客户端自己的钟，从计划到达算到拿到答案。
#
# 两次读数之间发生了什么，仪表没看见，于是给出上下界：只要其间没有涨了又跌，
# 真正的时间平均就落在每对相邻读数的较小者与较大者之间。
# 客户端数进去、仪表看不到的只有网络段，最多差 $\lambda$ 乘平均网络时间，也印在后面。

# %% [markdown] key="sources" lang="en" partner="2ad5af92"
# ## Two sources that know nothing of each other
#
# A law that everything obeys can't test a **service**. It can test a **measurement**, if its two sides
# come from different places:
#
# - $N$ from the server's own gauge, `waiting + running` of `server.statistics`, read about every 2 ms by
#   an asyncio task that knows no client (`watched`, a dozen lines worth opening);
# - $T$ from the client's own clock, from the intended arrival to the answer.
#
# What happens between two readings the gauge doesn't see, so it gives bounds: unless the number rose and fell
# again meanwhile, the true time average lies between the smaller and the larger of each pair of readings.
# All that the client counts and the gauge can't see is the network part, at most $\lambda$ times its mean;
# that is printed as well.


# %% key="sources-code"
def compare(name, run, latencies):
    by_gauge, by_client = run.gauge.mean(0, run.duration), sum(latencies) / run.duration
    low, high = run.gauge.bounds(0, run.duration)
    print(
        f"{name}: gauge {by_gauge:.3f} (between {low:.3f} and {high:.3f}), client {by_client:.3f}, "
        f"difference {by_client / by_gauge - 1:+.2%}"
    )


for load, run in runs.items():
    compare(load, run, run.latencies)
    network = parts[load]["network"].sum() / 1e3 / run.duration
    print(f"  in the network, out of the gauge's sight: at most {network:.3f} requests")

run = runs["heavy"]
fig, ax = figure(
    "The mean of the gauge and the clients' λT lie on each other",
    "time (s)",
    "requests inside",
    size=(6.4, 3.0),
)
ax.step(run.gauge.times, run.gauge.numbers, where="post", marker="", color=COLOURS["sky"], linewidth=1)
ax.axhline(sum(run.latencies) / run.duration, label="λT, by the client's clock", **THEORY)
ax.axhline(run.gauge.mean(0, run.duration), color=COLOURS["orange"], linestyle=":", label="mean of the gauge")
_ = ax.legend()

# %% [markdown] key="sources-reading" lang="zh" partner="5e970294"
# 两条水平线几乎重合，差别落在上下界和网络段能解释的范围里。注意这句话的分量：
# 数人头的从没看过一块表，看表的从没数过一个人头。

# %% [markdown] key="sources-reading" lang="en" partner="99af5cf5"
# The two level lines can hardly be told apart, and what lies between them is of the size of the bounds and
# of the network. Mind what that means: whoever counted heads never looked at a clock, and whoever looked at
# the clock never counted a head.

# %% [markdown] key="window" lang="zh" partner="65fea75e"
# ## 窗口的两条边
#
# 生产系统不会为你清空。你只能在上午十点到十点零五分之间看，开窗时里面有人，关窗时也有人。
# 这时要补两笔：开窗时已经在里面的，他们的剩余时间占了窗口里的面积，却不算窗口内到达的人；
# 关窗时还没走的，他们的延迟全算进了 $\sum T_i$，尾巴却在窗外。补上之后仍是恒等式（Kim 和 Whitt）：
#
# $$\bar N = \lambda \bar T + \frac{R_{\text{开}} - R_{\text{关}}}{D}$$
#
# $R$ 是当时在场者还要待的总时间。下图从第 1 秒开窗，窗口越拉越长。

# %% [markdown] key="window" lang="en" partner="46697a53"
# ## The two edges of a window
#
# A production system will not empty itself for you. You look from ten o'clock to five past, with people
# inside when the window opens and when it closes. That takes two corrections. Those inside at the opening
# fill area in the window with the rest of their stay, and are no arrivals of it. Those inside at the
# closing have all their latency in $\sum T_i$, and its end outside. With both, it is an identity
# again (Kim and Whitt):
#
# $$\bar N = \lambda \bar T + \frac{R_{\text{open}} - R_{\text{close}}}{D}$$
#
# $R$ is the time that those present still had to stay, added up. The figure opens the window at second 1
# and makes it longer and longer.

# %% key="window-code"
ends = np.linspace(1.5, run.duration, 80)
accounts = [window_account(run.arrivals, run.departures, 1.0, end) for end in ends]
gauge = np.array([run.gauge.mean(1.0, end) for end in ends])
bare = np.array([littles_law(account.rate, account.mean_time) for account in accounts])
edges = np.array([account.edges for account in accounts])

fig, ax = figure(
    "Without its edges, a short window is wrong", "length of the window (s)", "N − λT (requests)"
)
ax.plot(ends - 1.0, gauge - bare, marker="", color=COLOURS["blue"], label="as it stands")
ax.plot(ends - 1.0, gauge - bare - edges, marker="", color=COLOURS["orange"], label="with both edges")
ax.axhline(0, **THEORY)
_ = ax.legend()

# %% [markdown] key="window-reading" lang="zh" partner="c22a5809"
# 蓝线在短窗口里乱跳，窗口长了才靠近零，因为边上那点人除以越来越长的 $D$。橙线补了两边，从头到尾贴着零。
# 记住一条经验：窗口要比最长的延迟长得多，否则先补边，再下结论。

# %% [markdown] key="window-reading" lang="en" partner="dcffaa4c"
# The blue line jumps about while the window is short, and nears zero as the few at the edges are divided by
# a longer and longer $D$. The orange one, with its edges, keeps to zero from the beginning. So use windows
# much longer than the longest latency, or else correct the edges before you conclude anything.

# %% [markdown] key="columns" lang="zh" partner="881d0877"
# ## 三列对照
#
# 现在把预测摆进来。**理论**用标定的 $H(b)$ 算出平均延迟，乘以 $\lambda$；**仿真**让同一串到达时刻走一遍服务器自己的规则；
# **实测**是仪表。仿真里的 $N$ 和 $T$ 出自同一张表，它们当然「符合」法则，这不算证据；
# 有意思的是拿它的 $N$ 和真服务器的仪表比。`spread` 是换 30 串别的到达时刻，仿真的 $N$ 会散开多少（标准差）。

# %% [markdown] key="columns" lang="en" partner="442bf425"
# ## Three columns
#
# Now put the predictions beside it. **Theory** works the mean latency out of the calibrated $H(b)$ and
# multiplies by $\lambda$; **simulation** takes the same arrivals through the server's own rule; the
# **measurement** is the gauge. In the simulation $N$ and $T$ come from one list, so of course they "obey"
# the law, and that is no evidence. What counts is its $N$ against that of the real server's gauge.
# `spread` is how far the simulated $N$ scatters over 30 other lists of arrivals (standard deviation).


# %% key="columns-code"
def number_inside(timelines):  # of a simulated run, which starts empty at 0 and ends empty
    return sum(t.total for t in timelines) / max(t.completed for t in timelines)


def calibrated(seed):
    return EmpiricalBatchTime(batch_times.samples, seed=seed)


for load, run in runs.items():
    chain = DynamicBatchingChain(rates[load], batch_times.law, DynamicBatching(8, max_wait_time=0))
    theory = littles_law(len(run.outcomes) / run.duration, chain.mean_latency)
    simulated = number_inside(simulate_under_load(8, arrivals[load], calibrated(0)))
    at_speed = number_inside(simulate_under_load(8, arrivals[load], RunSpeed(batch_times, run.timelines)))
    others = [poisson_arrivals(rates[load], len(arrivals[load]), seed) for seed in range(100, 130)]
    spread = np.std([number_inside(simulate_under_load(8, each, calibrated(1))) for each in others])
    drift = BatchTimes.of(run.timelines).slower_than(batch_times)
    print(
        f"{load}: theory {theory:.2f}, simulated {simulated:.2f} (spread {spread:.2f}), "
        f"gauge {run.gauge.mean(0, run.duration):.2f}"
    )
    print(f"  drift {drift:+.0%}; simulated at the run's speed {at_speed:.2f}")

# %% [markdown] key="columns-reading" lang="zh" partner="f2ee6885"
# 先看漂移：这次的批耗时比标定时慢（正）或快（负）了多少。慢几个百分点，重载下的 $N$ 会涨得更多，理论和仿真就都偏低；
# 快了则偏高。按这次运行自己的快慢再仿真一遍，剩下的差才是模型的。理论还要再让一步：它讲的是无限长的运行，
# 这里只有几秒，差一个 `spread` 不稀奇。

# %% [markdown] key="columns-reading" lang="en" partner="9b0a7af3"
# Look at the drift first: how much slower (positive) or faster (negative) the batches ran than at calibration.
# Some percent slower raise $N$ by more than that under the heavy load, and leave theory and simulation too
# low; faster, too high. What remains when the simulation is repeated at the run's own speed is the model's
# own fault. Theory deserves one more allowance: it speaks of an endless run, this one lasted seconds, and to
# be off by a `spread` is nothing odd.

# %% [markdown] key="tautology" lang="zh" partner="c29a5c2c"
# ## 永远通过的检验
#
# 现在请一位新同事写客户端。用户等太久就会走，所以他给请求设了超时；答案一到，就把这次的起止时刻记进 `log`。
# 下面是他的代码，跑在一个忙碌的钟点，负载到了容量的九成。每一行看上去都没错，你能找出毛病吗？

# %% [markdown] key="tautology" lang="en" partner="a86534ed"
# ## The check that always passes
#
# A new colleague writes the client. Users who wait too long leave, so requests get a timeout; when an answer
# is there, its start and end go into `log`. Here is the code, run in a busy hour at nine tenths of the
# capacity. Every line of it looks right. Can you see what is wrong?

# %% key="bug-code"
patience = quantile(runs["heavy"].latencies, 0.5)
log = []


async def new_client(server, request):
    start = time.perf_counter()
    answer = await server.predict(request, timeout=patience)
    log.append((start, time.perf_counter()))
    return answer


rate = 0.9 * capacity
run = await measure_with_gauge(
    engine, 8, poisson_arrivals(rate, round(6 * rate), seed=2), shape, client=new_client
)
starts, ends = np.array(log).T - run.started
reported = ends - starts
mean, p99 = reported.mean() * 1e3, quantile(reported, 0.99) * 1e3
print(f"the client's report: mean {mean:.0f} ms, P99 {p99:.0f} ms; its timeout is {patience * 1e3:.0f} ms")

account = window_account(starts, ends, 0, run.duration)
print(f"one source: N {account.mean_number:.6f}, lambda T {littles_law(account.rate, account.mean_time):.6f}")

# %% [markdown] key="tautology-reading" lang="zh" partner="a8ca3c31"
# 他很谨慎，还用利特尔法则核对了：从 `log` 里数出 $N$，从 `log` 里算出 $\lambda$ 和 $T$，六位小数全部吻合。
# 可这两边出自同一张表。$\int N\,dt$ 和 $\sum T_i$ 是同一块面积的两种加法，
# 哪怕表里漏了一半的人，哪怕毫秒当成了秒，它们照样相等。这是恒等式，它检验的是加法。
#
# 换成两个来源：

# %% [markdown] key="tautology-reading" lang="en" partner="6b0c9ab8"
# The colleague is careful and has checked with Little's law: $N$ counted from `log`, $\lambda$ and $T$
# worked out from `log`, and they agree to six decimals. But both sides come from one list. $\int N\,dt$
# and $\sum T_i$ are two ways to add up one area: leave half of the people out of the list, take milliseconds
# for seconds, and they are equal still. It is an identity, and what it tests is addition.
#
# Now with two sources:

# %% key="two-sources-code"
compare("two sources", run, reported)
lost = sum(outcome.error is not None for outcome in run.outcomes)
missing = run.gauge.mean(0, run.duration) - reported.sum() / run.duration
print(f"{lost} of {len(run.outcomes)} requests timed out and are not in the log")
print(f"their waiting: {lost * patience / run.duration:.3f} requests inside; missing: {missing:.3f}")

# %% [markdown] key="survivors" lang="zh" partner="461609a1"
# 缺口一目了然，大小也对得上：`predict` 超时会抛异常，`log.append` 那一行根本没有执行到。
# 等得最久的人一个也没进报告，所以不管系统多糟，报告里的 P99 到超时为止。漏掉的越多，报告越好看：
# 这叫**幸存者偏差**。服务器的仪表不知道谁会写日志，所有人等待时它都数着。

# %% [markdown] key="survivors" lang="en" partner="48c32def"
# There is the gap, and its size fits: on a timeout `predict` raises, and the line with `log.append` is never
# reached. Those who waited longest are not in the report at all, so its P99 stops at the timeout, however bad
# things are. The more are left out, the better the report looks: **survivorship bias**. The server's gauge doesn't know who will write a log, and counts everyone while they wait.

# %% [markdown] key="box" lang="zh" partner="07edd18a"
# ## 什么会让它失灵
#
# **两只表量的是同一个盒子，人却在盒子外面。** 另一个客户端只有四个连接，没有空连接就在自己进程里等，
# 拿到连接才开始计时。

# %% [markdown] key="box" lang="en" partner="4dfb4fd8"
# ## What breaks it
#
# **Both sources watch one box, and the people stand outside it.** Another client has four connections.
# Without a free one it waits in its own process, and its clock starts once it has got one.

# %% key="box-code"
connections = asyncio.Semaphore(4)
timed = []


async def pooled_client(server, request):
    async with connections:
        start = time.perf_counter()
        answer = await server.predict(request)
        timed.append(time.perf_counter() - start)
    return answer


rate = 0.75 * batch_times.law.capacity(4)
run = await measure_with_gauge(
    engine, 8, poisson_arrivals(rate, round(4 * rate), seed=2), shape, client=pooled_client
)
compare("clock from the send            ", run, timed)
compare("clock from the intended arrival", run, run.latencies)

# %% [markdown] key="box-reading" lang="zh" partner="623c8bb5"
# 从发送算起，两个来源相符，却都没看见在客户端门口排队的人：法则只保证**盒子**的账是平的。
# 从计划到达算起，差额就露出来了，除以到达率就是用户在门外等的时间。所以核对之前先问：盒子画在哪里？
# 这种漏法叫协同遗漏，第 12 课会当场抓住它。
#
# **没有稳态，或者运行被掐断。** 下面用仿真把负载推到容量的 0.7 和 1.3 倍，60 秒一到就停，
# 只有已经回来的答案进了日志。

# %% [markdown] key="box-reading" lang="en" partner="bd0116c2"
# Counted from the send, the two sources agree, and neither has seen those who queue at the client's own
# door: the law only balances the books of the **box**. Counted from the intended arrival the difference
# shows, and divided by the arrival rate it is how long users stood outside. So ask first where the box is
# drawn. This way of losing people is called coordinated omission, and lesson 12 catches it in the act.
#
# **No steady state, or a run that was cut off.** Here the simulator drives the load to 0.7 and 1.3 times
# the capacity, and stops at 60 seconds; only answers that are back by then are in the log.

# %% key="cut-code"
for load in (0.7, 1.3):
    came = np.array(poisson_arrivals(load * capacity, round(70 * load * capacity), seed=3))
    left = np.array([t.completed for t in simulate_under_load(8, came, batch_times.law)]) / 1e9
    account = window_account(came, left, 0, 60)
    logged = (left - came)[left <= 60].sum() / 60
    print(
        f"load {load}: inside {account.mean_number:6.1f}; lambda T from the log {logged:6.1f}; "
        f"lambda T of all who came {account.sojourns / 60:6.1f}, with the edges "
        f"{account.sojourns / 60 + account.edges:6.1f}"
    )

# %% [markdown] key="cut-reading" lang="zh" partner="1e0535ea"
# 稳定时，边上的人不多，日志差不了多少。过载时队列只增不减，被截断的偏偏是等得最久的，日志里的延迟又好看了；
# 补上边，账依然平，但「平均延迟」已经没有意义，它取决于你看了多久。
#
# **它只管平均值。** 同样的 $N$ 和 $\lambda$，P99 可以好可以坏。法则告诉你报告漏没漏人，不告诉你尾部有多长。

# %% [markdown] key="cut-reading" lang="en" partner="a15bde5c"
# While the queue is stable there are few at the edge, and the log is nearly right. Under overload the queue
# only grows, those who are cut off are just those who waited longest, and the log looks good again. With
# the edges the books still balance, but "the mean latency" has lost its meaning: it depends on how long you
# look.
#
# **It speaks of means only.** With the same $N$ and $\lambda$, the P99 may be good or bad. The law tells
# you whether a report has left people out, and not how long the tail is.

# %% key="settle"
print(f"12 in flight at 40/s: you said {guessed_latency_ms:.0f} ms, it is {12 / 40 * 1e3:.0f} ms")
print(f"share of the queue:   you said {guessed_queue_share:.0%}, it is {queue_share:.0%}")

# %% [markdown] key="settle-reading" lang="zh" partner="cd512a7e"
# 只要说的是同一个盒子、同一段时间，看板和报告就不能同时为真。最可能的是报告没撒谎，只是回答了另一个问题：
# 它量的是 TTFT，或者只算模型的计算时间，或者只算没超时的请求。
# 去问供应商三句话：钟从哪一刻开始，到哪一刻停，超时和出错的算不算。

# %% [markdown] key="settle-reading" lang="en" partner="a38bd065"
# If they speak of one box and one stretch of time, dashboard and report can't both be true. Most likely the
# report doesn't lie, it answers another question: it has timed the TTFT, or only the model's computing, or
# only the requests that didn't time out. Put three questions to the vendor: at which moment does the clock
# start, at which does it stop, and are timeouts and errors in it?

# %% [markdown] key="exercises" lang="zh" partner="df303f81"
# ## 练习
#
# `check` 会给出最小的失败例子和可能的原因，`hint("02.1")` 给提示。
#
# **02.1** 由六个时间戳（整数纳秒）算出四段，按网络、排队、预填充、解码的顺序返回一个元组。

# %% [markdown] key="exercises" lang="en" partner="a125020a"
# ## Exercises
#
# `check` shows the smallest case that fails and the likely cause, and `hint("02.1")` gives a hint.
#
# **02.1** From six stamps (whole nanoseconds), the four parts as a tuple: network, queue, prefill, decode.


# %% key="ex1" exercise="02.1" tags=["nbval-check-output"]
def latency_parts(arrival, received, scheduled, first_token, finished, completed):
    raise NotImplementedError


check("02.1", latency_parts)


# %% key="ex1-solution" solution="02.1" tags=["nbval-check-output"]
def latency_parts(arrival, received, scheduled, first_token, finished, completed):
    network = (received - arrival) + (completed - finished)
    return network, scheduled - received, first_token - scheduled, finished - first_token


check("02.1", latency_parts)

# %% [markdown] key="exercise2" lang="zh" partner="b647e6e8"
# **02.2** 在途请求数从 `times[i]` 秒起变成 `numbers[i]`，保持到下一次变化，最后一个保持到 `end`。
# 从 `times[0]` 到 `end` 的时间平均是多少？

# %% [markdown] key="exercise2" lang="en" partner="ff862ee3"
# **02.2** The number in flight becomes `numbers[i]` at `times[i]` seconds and stays so until the next change,
# the last until `end`. What is its time average from `times[0]` to `end`?


# %% key="ex2" exercise="02.2" tags=["nbval-check-output"]
def time_average(times, numbers, end):
    raise NotImplementedError


check("02.2", time_average)


# %% key="ex2-solution" solution="02.2" tags=["nbval-check-output"]
def time_average(times, numbers, end):
    return np.dot(numbers, np.diff([*times, end])) / (end - times[0])


check("02.2", time_average)

# %% [markdown] key="exercise3" lang="zh" partner="fabcec5d"
# **02.3** 看板给出平均在途请求数和**每分钟**的请求数。平均延迟是多少**毫秒**？

# %% [markdown] key="exercise3" lang="en" partner="b40356b7"
# **02.3** A dashboard shows the mean number in flight and the requests **per minute**. What is the mean
# latency in **milliseconds**?


# %% key="ex3" exercise="02.3" tags=["nbval-check-output"]
def mean_latency_ms(in_flight, requests_per_minute):
    raise NotImplementedError


check("02.3", mean_latency_ms)


# %% key="ex3-solution" solution="02.3" tags=["nbval-check-output"]
def mean_latency_ms(in_flight, requests_per_minute):
    return in_flight / (requests_per_minute / 60) * 1000


check("02.3", mean_latency_ms)

# %% [markdown] key="exercise4" lang="zh" partner="3aec9705"
# **02.4** 写出双来源检验：一场首尾皆空、长 `duration` 秒的运行里，客户端记下的 `latencies`（秒）能否解释仪表的均值，
# 相差不超过仪表均值的 `tolerance` 倍？返回 `True` 或 `False`。用例里有诚实的运行，也有三种埋好的毛病。

# %% [markdown] key="exercise4" lang="en" partner="9fa465b4"
# **02.4** Write the check from two sources. In a run of `duration` seconds, empty at both ends, do the
# `latencies` (s) that the clients logged explain the gauge's mean, to within the share `tolerance` of it?
# Return `True` or `False`. Among the cases are honest runs and three planted bugs.


# %% key="ex4" exercise="02.4" tags=["nbval-check-output"]
def sources_agree(gauge_mean, latencies, duration, tolerance):
    raise NotImplementedError


check("02.4", sources_agree)


# %% key="ex4-solution" solution="02.4" tags=["nbval-check-output"]
def sources_agree(gauge_mean, latencies, duration, tolerance):
    return abs(sum(latencies) / duration - gauge_mean) <= tolerance * gauge_mean


check("02.4", sources_agree)

# %% [markdown] key="exercise5" lang="zh" partner="2de37259"
# **02.5** `latencies` 里每个请求一项（秒），出错或被拒的是 `None`。`duration` 秒的有效吞吐量是多少？
# 恰好等于 `slo` 算达标。

# %% [markdown] key="exercise5" lang="en" partner="8f0ad17e"
# **02.5** `latencies` has one entry per request (s), `None` for one that failed or was refused. What is the
# goodput over `duration` seconds? A latency of exactly `slo` meets it.


# %% key="ex5" exercise="02.5" tags=["nbval-check-output"]
def goodput(latencies, slo, duration):
    raise NotImplementedError


check("02.5", goodput)


# %% key="ex5-solution" solution="02.5" tags=["nbval-check-output"]
def goodput(latencies, slo, duration):
    return sum(latency is not None and latency <= slo for latency in latencies) / duration


check("02.5", goodput)

# %% key="close"
engine.shutdown()

# %% [markdown] key="summary" lang="zh" partner="4f92a632"
# ## 星期一怎么做
#
# 1. 给每个请求盖上六个时间戳，看板上分段画：排队涨了查负载，计算涨了查模型。
# 2. 拿服务器的在途仪表除以到达率，和延迟报告的平均值比一比；差得多，就去找漏掉的人。
# 3. 核对时两边必须来自不同的地方；从一张延迟表里算出的 $N$ 和 $T$，什么都证明不了。
# 4. 先说清盒子画在哪里、窗口多长、边上的人和超时的人怎么算。
# 5. P99 后面写上请求数和区间；SLO 定在总延迟上，出错算未达标。

# %% [markdown] key="summary" lang="en" partner="7a8dae57"
# ## What to do on Monday
#
# 1. Stamp every request six times and draw the parts on the dashboard: when the queue grows look at the
#    load, when computing grows look at the model.
# 2. Divide the server's number in flight by the arrival rate and compare it with the mean of the latency
#    report; if they differ by much, look for those who were left out.
# 3. Take the two sides from different places; $N$ and $T$ worked out from one list of latencies prove
#    nothing.
# 4. Say first where the box is drawn, how long the window is, and what becomes of timeouts and of those at
#    its edges.
# 5. Write the number of requests and an interval beside every P99; set the SLO on the whole latency, with
#    errors as misses.

# %% [markdown] key="references" lang="zh" partner="ad7cbf45"
# ## 参考文献
#
# - J. D. C. Little, *A Proof for the Queuing Formula: L = λW*, Operations Research, 1961。
# - J. D. C. Little 和 S. C. Graves, *Little's Law*, 收于 D. Chhajed 和 T. J. Lowe 编 *Building Intuition*,
#   Springer, 2008。怎么用、什么时候能用，读这一篇。
# - S.-H. Kim 和 W. Whitt, *Statistical Analysis with Little's Law*, Operations Research, 2013。
#   有限窗口里的法则，本课的两条边出自这里。

# %% [markdown] key="references" lang="en" partner="bc4aa323"
# ## References
#
# - J. D. C. Little, *A Proof for the Queuing Formula: L = λW*, Operations Research, 1961.
# - J. D. C. Little and S. C. Graves, *Little's Law*, in D. Chhajed and T. J. Lowe (eds.), *Building
#   Intuition*, Springer, 2008. How to use it, and when; read this one.
# - S.-H. Kim and W. Whitt, *Statistical Analysis with Little's Law*, Operations Research, 2013. The law in a
#   finite window; the two edges of this lesson are theirs.
