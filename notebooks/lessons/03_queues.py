# %% [markdown] key="title" lang="zh" partner="0ca0ef8a"
# # 03 · 排队
#
# 服务器利用率 90%，P99 已经贴着红线。下周流量要再涨 5%，同事看了一眼监控：「怕什么，还有 10% 的余量。」
# 加机器，还是不加？
#
# 学完这一课，你能做三件事：
#
# - 由到达率和实测的服务时间预测等待，均值和百分位数都会算，还说得出预测会差多少；
# - 为一个 P99 目标定服务器台数，并知道先动哪个旋钮：负载、长短不齐、排成几队、谁先谁后；
# - 看出公式什么时候不再成立。
#
# 顺序始终是：先猜，再看理论，再看仿真，最后让真服务器说话。

# %% [markdown] key="title" lang="en" partner="502f5414"
# # 03 · Queues
#
# The server is at 90% utilization and P99 touches its limit. Next week traffic grows by 5%. A colleague
# looks at the dashboard: "Relax, there is 10% headroom." Do you add a machine or not?
#
# After this lesson you can
#
# - predict waiting from the arrival rate and measured service times, means and percentiles, and say how
#   far off the prediction may be;
# - choose the number of servers for a P99 target, and know which knob to turn first: load, uneven
#   lengths, how many lines, who goes first;
# - tell when the formulas no longer hold.
#
# The order is always the same: guess, theory, simulation, and the real server has the last word.

# %% key="imports"
import inspect
from itertools import pairwise

import numpy as np
from scipy import stats

from servinglib.course import check, hint
from servinglib.course.exercises.lesson03 import judge
from servinglib.course.sliders import LoadSlider
from servinglib.engines.registry import load_engine
from servinglib.errors import InvalidSetting
from servinglib.experiments.queue_measurement import TwoLengths, queue_columns
from servinglib.plots import COLOURS, MEASURED, SIMULATED, THEORY, figure, label
from servinglib.statistics import mean_interval, streams
from simulations import fast_queues, queues
from simulations.theory import disciplines, markovian
from simulations.theory.queues import gg1_wait_bound, ggc_wait_approximation, mg1_mean_wait

# %% [markdown] key="predict" lang="zh" partner="15cd1b11"
# ## 先押注
#
# 流量涨 5%，P99 变成原来的几倍？反过来，流量降 5% 呢？把下面两个数改成你的答案。

# %% [markdown] key="predict" lang="en" partner="5867a3f5"
# ## Place your bet
#
# If traffic grows by 5%, by what factor does P99 change? And if it shrinks by 5%? Put your answers into
# the cell.

# %% key="guess"
guessed_factor_more = 1.05
guessed_factor_less = 0.95

# %% [markdown] key="program" lang="zh" partner="e66ac7f4"
# ## 一条队，从头读到尾
#
# 排队论的第一个系统是一句话：先到先服务。下面是仿真它的完整程序，每位顾客的一生写在 `customer` 里：
# 排队、轮到、被服务、离开。SimPy 让所有人的一生在同一个时钟上走。读到没有哪一行是你不认识的为止，
# 同一个文件里的 `loss`、`reneging`、`sjf` 等等都是它的近亲。

# %% [markdown] key="program" lang="en" partner="69e38760"
# ## One line, read from top to bottom
#
# The first system of queueing theory is one sentence: first come, first served. Here is the whole program
# that simulates it. The life of a customer stands in `customer`: get in line, get a turn, be served, go.
# SimPy plays all these lives against one clock. Read until there is no line that you don't recognise; in
# the same file `loss`, `reneging`, `sjf` and others are close relatives of it.

# %% key="program-code"
print(inspect.getsource(queues.fifo))

# %% [markdown] key="paper" lang="zh" partner="622f3787"
# 四位顾客，先在纸上算一遍：谁等了多久？再对答案。要得到可信的均值，四位不够，要几百万位，那时 SimPy 就嫌慢了；
# `fast_queues` 里同名的函数算的是同一件事，每秒上千万位。两边必须一致。

# %% [markdown] key="paper" lang="en" partner="01e99c2f"
# Four customers, on paper first: who waits how long? Then compare. Means that one can trust take millions
# of customers rather than four, and for that SimPy is slow; the function of the same name in
# `fast_queues` works out the same thing at more than ten million a second. The two must agree.

# %% key="paper-code" tags=["nbval-check-output"]
arrivals, services = [0, 1, 2, 6], [3, 1, 2, 1]
run = queues.fifo(arrivals, services)
print("arrival  start  departure  wait")
for row in zip(run.arrivals, run.starts, run.departures, run.waits, strict=True):
    print("{:7.0f}{:7.0f}{:11.0f}{:6.0f}".format(*row))
print("the fast one agrees:", (fast_queues.fifo(arrivals, services).departures == run.departures).all())

# %% [markdown] key="mm1" lang="zh" partner="57661de4"
# ## M/M/1：撞墙
#
# 记号 M/M/1 说三件事：到达没有记忆（泊松），服务时间没有记忆（指数分布），一台服务器。
# 到达率记作 $\lambda$，平均服务时间 $E[S]$，负载 $\rho=\lambda E[S]$，即服务器忙着的时间比例，也就是利用率。
# 停留时间 $T$（排队加服务，用户眼里的延迟）整个分布只有一行：
#
# $$P(T>t)=e^{-t/E[T]},\qquad E[T]=\frac{E[S]}{1-\rho}$$
#
# 所以 P99 恒为均值的 $\ln 100\approx 4.6$ 倍。全部信息都在分母 $1-\rho$ 里：决定延迟的不是用掉了多少，而是**还剩**多少。
#
# 公式可以抄错，也可以用错，所以在上面放仿真点。下面的 `days` 把同一个系统跑 20「天」，每天的随机数互相独立，
# 于是均值有学生 t 区间可言；开头的一成是预热，扔掉。负载越高，队列忘得越慢，要的顾客数按 $(1-\rho)^{-2}$ 增长。
# 到真服务器登场之前，时间单位一律是平均服务时间。

# %% [markdown] key="mm1" lang="en" partner="164c0e78"
# ## M/M/1: the wall
#
# The name M/M/1 says three things: arrivals without memory (Poisson), service times without memory
# (exponential), one server. The arrival rate is $\lambda$, the mean service time $E[S]$, and the load
# $\rho=\lambda E[S]$ is the share of time in which the server is busy, its utilization. The whole law
# of the time in system $T$, wait and service together, which is what users call latency, is one line:
#
# $$P(T>t)=e^{-t/E[T]},\qquad E[T]=\frac{E[S]}{1-\rho}$$
#
# So P99 is always $\ln 100\approx 4.6$ times the mean, and all the news is in the denominator $1-\rho$:
# what decides about latency is not how much is used but how much is **left**.
#
# A formula can be copied wrongly, and used wrongly, so we lay simulated points on it. `days` runs one
# system on 20 "days" with independent random numbers, which is what entitles a mean to a Student t
# interval; the first tenth of each is warm-up and dropped. At higher load a queue forgets more slowly, and
# the customers needed grow as $(1-\rho)^{-2}$. Until the real server comes, the unit of time is the mean
# service time.


# %% key="days"
def days(system, rate, law, customers, runs=20):
    for day in range(runs):
        draw = streams(day, "arrivals", "services")  # the same day brings the same customers to any system
        arrivals = np.cumsum(draw["arrivals"].exponential(1 / rate, customers))
        yield system(arrivals, law(draw["services"], customers))


def over_days(measure, runs):
    return mean_interval([measure(run) for run in runs], confidence=0.99)


def enough(load):
    return round(8000 / (1 - load) ** 2)


def settled(times):
    return times[len(times) // 10 :]


def exponential(rng, n):
    return rng.exponential(1.0, n)


def p99_time(run):
    return np.quantile(settled(run.sojourns), 0.99)


# %% key="mm1-code"
def points(ax, x, intervals, **style):
    value = np.array([i.value for i in intervals])
    reach = ([i.value - i.low for i in intervals], [i.high - i.value for i in intervals])
    ax.errorbar(x, value, yerr=reach, linestyle="", capsize=3, **style)


loads = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
p99 = [over_days(p99_time, days(fast_queues.fifo, load, exponential, enough(load))) for load in loads]
for load, found in zip(loads, p99, strict=True):
    exact = markovian.mm1_sojourn_quantile(load, 1.0, 0.99)
    print(f"load {load:.2f}: P99 theory {exact:5.1f}, simulated {found.low:5.1f} to {found.high:5.1f}")

fig, ax = figure(
    "P99 is decided by what is left", "load (share of time busy)", "P99 time in system (mean service times)"
)
fine = np.linspace(0.05, 0.955, 300)
ax.plot(fine, markovian.mm1_sojourn_quantile(fine, 1.0, 0.99), label="theory, M/M/1", **THEORY)
points(ax, loads, p99, label="simulation, 99% intervals", **SIMULATED)
ax.set_ylim(0)
_ = ax.legend()

# %% [markdown] key="tail" lang="zh" partner="220ef20c"
# 同一件事换个看法：画出 $t$ 时刻还没走的请求所占的比例。纵轴取对数，指数分布就是直线；直线碰到 1% 的地方就是 P99。
# 负载升高，直线躺平，交点向右飞。

# %% [markdown] key="tail" lang="en" partner="02290600"
# The same seen from another side: the share of requests that are still inside after $t$. On a logarithmic
# axis an exponential law is a straight line, and where it meets 1%, there is P99. As the load rises, the
# line lies down and the meeting point flies off to the right.


# %% key="tail-code"
def tail(*loads):
    fig, ax = figure(
        "Where the line of a load meets 1%, there is P99",
        "time in system t (mean service times)",
        "share of requests still inside after t",
        yscale="log",
    )
    t = np.linspace(0, 100, 26)
    for load in loads:
        [run] = days(fast_queues.fifo, load, exponential, customers=2_000_000, runs=1)
        ax.plot(t, 1 - markovian.mm1_sojourn_cdf(load, 1.0, t), **THEORY)
        ax.plot(t, [(settled(run.sojourns) > each).mean() for each in t], linestyle="", **SIMULATED)
        ax.annotate(f" {load:.2f}", (markovian.mm1_sojourn_quantile(load, 1.0, 0.99), 0.0105))
    ax.axhline(0.01, color="#999999", linewidth=1)
    ax.set(xlim=(0, 115), ylim=(1e-3, 1.2))
    return fig


_ = tail(0.5, 0.8, 0.9, 0.95)

# %% [markdown] key="slider" lang="zh" partner="aa48eec3"
# 在运行着的 notebook 里，下面有个滑块，每挪一次就重新仿真两百万位顾客。慢慢从 0.80 推到 0.97，记住手感。
# 推到最右，圆圈会离开直线：不是公式错了，是两百万位顾客也不够，长尾来自罕见的大拥堵，而这一「天」未必赶上几次。
# 这也是实测 P99 的处境：负载一高，一天里量出来的多半偏低，偶尔高得离谱。

# %% [markdown] key="slider" lang="en" partner="6adaaddc"
# In a running notebook there is a slider below, which simulates two million customers anew at every step.
# Push it slowly from 0.80 to 0.97 and remember the feeling. At the far right the circles leave the line. The
# formula isn't wrong; two million customers are too few, because the tail is made of rare, large jams, and
# such a "day" may have hardly one. A measured P99 is in the same position: at high load it is mostly too
# low, and now and then far too high.

# %% key="slider-code"
LoadSlider(tail)

# %% [markdown] key="sensitivity" lang="zh" partner="ab487297"
# ## 回到那 5%
#
# 等待 $W$ 对到达率求导，除以自己，$E[S^2]$ 之类全都消掉了（下一节的任何服务分布都一样）：
#
# $$\frac{dW}{W}=\frac{1}{1-\rho}\cdot\frac{d\lambda}{\lambda}$$
#
# $\rho=0.9$ 时放大 10 倍：流量预测差 2%，等待就差 20%。这个放大器对坏消息一视同仁：机器慢了 2%，
# 服务时间的估计偏了 2%，后果一样严重，甚至更糟一点。所以高负载下没有人能把 P99 预测到百分之几，
# 报出这种精度的人没有算过这一行。
#
# 下面在**同一群顾客**身上核对：让他们来得快一点或慢一点，别的都不变，差别就只来自流量。

# %% [markdown] key="sensitivity" lang="en" partner="f0c957b8"
# ## Back to the 5%
#
# Differentiate the wait $W$ by the arrival rate and divide by the wait itself: $E[S^2]$ and the rest
# cancel, so this holds for every law of service in the next section too:
#
# $$\frac{dW}{W}=\frac{1}{1-\rho}\cdot\frac{d\lambda}{\lambda}$$
#
# At $\rho=0.9$ it multiplies by 10: traffic 2% off the forecast puts the wait 20% off. It takes all bad
# news alike. A machine that is 2% slower, or a service time estimated 2% too low, is as bad and even a
# little worse. So at high load nobody can predict P99 to a few percent, and whoever quotes such a figure
# has not done this line of arithmetic.
#
# The check is on **the same customers**: they come a little faster or more slowly and nothing else
# changes, so whatever differs is due to the traffic.

# %% key="sensitivity-code"
customers = enough(0.9)


def p99_by_day(load):
    return np.array([p99_time(run) for run in days(fast_queues.fifo, load, exponential, customers)])


base = p99_by_day(0.9)
factors = {change: p99_by_day(0.9 * (1 + change)) / base for change in (-0.05, 0.02, 0.05)}
for change, factor in factors.items():
    exact, found = 0.1 / (1 - 0.9 * (1 + change)), mean_interval(factor, 0.99)
    print(
        f"traffic {change:+.0%}: P99 x {exact:.2f} in theory, {found.low:.2f} to {found.high:.2f} simulated"
    )
print(f"you said x {guessed_factor_more:.2f} for +5% and x {guessed_factor_less:.2f} for -5%")

# %% [markdown] key="sensitivity-reading" lang="zh" partner="76b54cee"
# 「10% 的余量」说的是吞吐量，不是延迟：从这里再涨一成出头，等待就没有上限。好消息是放大器反过来也管用，
# 削掉一点点流量（限流、缓存、错峰），换来的 P99 远多于你付出的。

# %% [markdown] key="sensitivity-reading" lang="en" partner="b4a3dcc3"
# "10% headroom" speaks of throughput, not of latency: a little over a tenth more traffic from here, and
# waiting has no limit. The good news is that the lever works both ways. Shave off a little traffic, by
# rate limits, a cache, or moving jobs to the night, and P99 falls by far more than you gave up.

# %% [markdown] key="variance" lang="zh" partner="a5133df1"
# ## M/G/1：长短不齐的代价
#
# 大模型的服务时间不服从指数分布。Pollaczek 与 Khinchine 的公式对**任何**服务分布都精确（G 表示一般分布）：
#
# $$E[W]=\frac{\lambda E[S^2]}{2(1-\rho)}=\frac{\rho}{1-\rho}\cdot\frac{1+C^2}{2}\cdot E[S]$$
#
# $C^2$ 是方差除以均值平方：一律等长为 0，指数分布为 1。为什么冒出二阶矩？你到的时候若有人正在被服务，
# 他多半是个「大户」，因为大户占着窗口的时间长，你更容易撞上。
#
# 真实的 $C^2$ 有多大？Azure 公开的一小时代码补全流量，8,819 个请求，输出长度的 $C^2$ 是 4.6。
# 先猜：均值不变，$C^2$ 从 0 变成 4.6，等待变成几倍？

# %% [markdown] key="variance" lang="en" partner="62d6454b"
# ## M/G/1: the price of uneven lengths
#
# The service times of a language model are not exponential. Pollaczek and Khinchine's formula is exact for
# **any** law of service (G is for general):
#
# $$E[W]=\frac{\lambda E[S^2]}{2(1-\rho)}=\frac{\rho}{1-\rho}\cdot\frac{1+C^2}{2}\cdot E[S]$$
#
# $C^2$ is the variance over the squared mean: 0 where all are equal, 1 for an exponential law. Why a
# second moment? If somebody is being served as you come in, it is probably one of the big ones, since they
# are at the window for longest and so are the likeliest to be met.
#
# How large is $C^2$ in real life? In an hour of code completion that Azure published, 8,819 requests, the
# output lengths have a $C^2$ of 4.6. Guess first: if $C^2$ goes from 0 to 4.6 at the same mean, by what
# factor does the wait change?

# %% key="variance-laws"
sigma = np.sqrt(np.log(1 + 4.6))
uneven = stats.lognorm(s=sigma, scale=np.exp(-(sigma**2) / 2))  # mean 1, C^2 = 4.6


def lognormal(rng, n):
    return rng.lognormal(-(sigma**2) / 2, sigma, n)


laws = {
    "all equal": (0, lambda rng, n: np.ones(n)),
    "exponential": (1, exponential),
    "lognormal": (4.6, lognormal),
}

# %% key="variance-code"
loads = (0.5, 0.7, 0.8, 0.9)
fig, ax = figure(
    "The same load, uneven services", "load (share of time busy)", "mean wait (mean service times)"
)
for name, (scv, law) in laws.items():
    waits = [
        over_days(lambda run: settled(run.waits).mean(), days(fast_queues.fifo, load, law, enough(load)))
        for load in loads
    ]
    fine = np.linspace(0.3, 0.9, 100)
    [line] = ax.plot(fine, mg1_mean_wait(fine, 1.0, 1 + scv), **THEORY)
    points(ax, loads, waits, **SIMULATED)
    label(ax, line, f"{name}, $C^2$={scv:g}")
    exact, found = mg1_mean_wait(0.9, 1.0, 1 + scv), waits[-1]
    print(f"load 0.9, {name:11s}: theory {exact:5.2f}, simulated {found.low:5.2f} to {found.high:5.2f}")

# %% [markdown] key="variance-reading" lang="zh" partner="6ae682f9"
# 等长的请求只等指数分布的一半；换成真实的参差，等待是等长的 5.6 倍，而服务器一样忙，监控上的利用率一模一样。
# 所以 `max_tokens` 的上限不只省算力：它砍的是 $E[S^2]$。把超长请求分流到另一组机器，道理相同。

# %% [markdown] key="variance-reading" lang="en" partner="9ef26c3b"
# Equal requests wait half as long as exponential ones; with realistic unevenness the wait is 5.6 times that
# of equal ones, while the server is just as busy and the dashboard shows the same utilization. So a limit
# on `max_tokens` saves more than arithmetic: it cuts $E[S^2]$. Sending the very long ones to machines of
# their own works for the same reason.

# %% [markdown] key="pooling" lang="zh" partner="d7e0a25e"
# ## M/M/c：排成几队
#
# 现在有 $c$ 台服务器。随机分流、各排一队，每队就是一个负载相同的 M/M/1，台数再多也不改善什么。
# 若共用一队，谁空下来谁叫下一位，就不会有人在等而服务器闲着。Erlang C 给出必须等的比例 $C$，之后
#
# $$P(W>t)=C\,e^{-(c\mu-\lambda)t},\qquad \mu=1/E[S]$$
#
# 先猜：负载都是 0.9，各排一队和 16 台共用一队，P99 等待相差几倍？

# %% [markdown] key="pooling" lang="en" partner="c77e0ad3"
# ## M/M/c: how many lines
#
# Now there are $c$ servers. Split the traffic at random into a line for each, and each line is an M/M/1 at
# the same load: more of them improve nothing. In one common line, whoever is free calls the next, and no
# server idles while somebody waits. Erlang's C gives the share $C$ who must wait, and then
#
# $$P(W>t)=C\,e^{-(c\mu-\lambda)t},\qquad \mu=1/E[S]$$
#
# Guess first: at load 0.9, by what factor does the P99 wait differ between a line each and one line for 16?


# %% key="pooling-code"
def one_line_for(servers):
    return lambda arrivals, services: fast_queues.fifo(arrivals, services, servers)


def p99_wait(run):
    return np.quantile(settled(run.waits), 0.99)


loads = (0.6, 0.7, 0.8, 0.9)
fine = np.linspace(0.6, 0.9, 100)
fig, ax = figure(
    "One line for all", "load (share of time busy)", "P99 wait (mean service times)", yscale="log"
)
for servers in (1, 4, 16):
    waits = [
        over_days(p99_wait, days(one_line_for(servers), load * servers, exponential, enough(load) // 2))
        for load in loads
    ]
    [line] = ax.plot(fine, markovian.mmc_wait_quantile(fine * servers, 1.0, servers, 0.99), **THEORY)
    points(ax, loads, waits, **SIMULATED)
    label(ax, line, f"c = {servers}" if servers > 1 else "a line each")
    exact, found = markovian.mmc_wait_quantile(0.9 * servers, 1.0, servers, 0.99), waits[-1]
    print(f"load 0.9, c={servers:2d}: theory {exact:5.2f}, simulated {found.low:5.2f} to {found.high:5.2f}")

# %% [markdown] key="pooling-reading" lang="zh" partner="84b84c33"
# 图上「各排一队」就是 M/M/1 那条线。合并队伍不花一台机器的钱；规模越大，同样的 P99 允许的负载越高。
# 反过来说，「利用率不要超过七成」这种通用规矩对一台太松、对一百台太紧。练习 03.5 让你亲手定台数。
# 真实的负载均衡器介于两者之间，第 13 课细说。

# %% [markdown] key="pooling-reading" lang="en" partner="43004544"
# In the figure, "a line each" is the curve of M/M/1. Pooling costs no machine, and the larger the pool, the
# higher the load that the same P99 allows. Conversely, a rule such as "no more than seven tenths" is too
# lax for one server and too strict for a hundred. Exercise 03.5 lets you choose the number. Real load
# balancing lies between the two; lesson 13 has the details.

# %% [markdown] key="order" lang="zh" partner="34fd8e13"
# ## 谁先谁后：总账变小，谁来买单
#
# 机器不加，队不合并，只换次序，能有多大差别？四种规则，同一群长短不齐的顾客：
#
# - FIFO：先到先服务；
# - PS（处理器共享）：$n$ 个人同时做，每人分到 $1/n$ 的速度，连续批处理与它神似（第 06 课）；
# - SJF（最短作业优先）：空下来时挑最短的，不打断；
# - SRPT（最短剩余时间优先）：谁剩得最少就做谁，可以打断。

# %% [markdown] key="order" lang="en" partner="5b87fa49"
# ## Who goes first: the sum shrinks, and somebody pays
#
# No machine added, no lines merged, only the order changed: how much can that do? Four rules, on the same
# uneven customers:
#
# - FIFO: first come, first served;
# - PS (processor sharing): all $n$ at once, each at $1/n$ of the speed; continuous batching resembles it
#   (lesson 06);
# - SJF (shortest job first): when free, pick the shortest, and interrupt nobody;
# - SRPT (shortest remaining processing time): serve whoever has least left, interrupting the others.

# %% key="order-code"
load, largest = 0.8, uneven.isf(0.01)
x = np.geomspace(0.05, 30, 60)
rules = {  # the simulation, and the mean time in system of a request of size x in theory
    "FIFO": (fast_queues.fifo, x + mg1_mean_wait(load, 1.0, 5.6)),
    "PS": (fast_queues.processor_sharing, disciplines.ps_mean_sojourn(load, 1.0, x)),
    "SJF": (fast_queues.sjf, x + disciplines.sjf_mean_wait_at(load, uneven, x)),
    "SRPT": (fast_queues.srpt, disciplines.srpt_mean_sojourn_at(load, uneven, x)),
}
measures = {
    "mean": lambda run: settled(run.sojourns).mean(),
    "P99": p99_time,
    "largest 1%": lambda run: settled(run.sojourns)[settled(run.services) > largest].mean(),
}
print(f"time in system at load {load}" + "".join(f"{name:>20s}" for name in measures))
for rule, (system, _) in rules.items():
    runs = list(days(system, load, lognormal, customers=100_000))
    found = [over_days(measure, runs) for measure in measures.values()]
    print(f"{rule:26s}" + "".join(f"{i.value:10.1f} +- {i.high - i.value:4.1f}  " for i in found))

# %% key="order-figure"
fig, ax = figure(
    "Who pays",
    "service time of the request (mean service times)",
    "mean time in system (mean service times)",
    xscale="log",
    yscale="log",
)
edges = np.geomspace(0.05, 30, 14)
for colour, (rule, (system, theory)) in zip(list(COLOURS.values())[:4], rules.items(), strict=True):
    [run] = days(system, load, lognormal, customers=1_000_000, runs=1)
    sizes, times = settled(run.services), settled(run.sojourns)
    members = [(low <= sizes) & (sizes < high) for low, high in pairwise(edges)]
    middles, means = ([values[m].mean() for m in members] for values in (sizes, times))
    ax.plot(x, theory, color=colour, linestyle="--", marker="", linewidth=1.3)
    ax.plot(middles, means, color=colour, linestyle="", marker="o", markerfacecolor="white")
    ax.annotate(f"{rule} ", (x[0], theory[0]), color=colour, ha="right", va="center")
_ = ax.set_xlim(0.02)

# %% [markdown] key="order-reading" lang="zh" partner="aaa40888"
# 虚线是理论，圆圈是仿真。照顾短的，均值大降，连 P99 也降，因为 FIFO 的 P99 里挤满了被长请求堵住的短请求。
# 账单寄给了最长的那 1%：看表的最后一列和图的右端。SJF 和 SRPT 都得事先知道长度，第 07 课用预测的长度来做。
# 另外看 FIFO 一行的区间：同样多的顾客，它的 P99 最难量准。

# %% [markdown] key="order-reading" lang="en" partner="77722e75"
# Dashes are theory, circles are simulation. Favouring the short ones lowers the mean a lot and P99 as well,
# because the P99 of FIFO is crowded with short requests stuck behind a long one. The bill goes to the
# longest 1%: see the last column and the right end of the figure. SJF and SRPT must know lengths beforehand;
# lesson 07 works with predicted ones. And look at the interval in the row of FIFO: with as many customers,
# its P99 is the hardest to know.

# %% [markdown] key="real" lang="zh" partner="d93a871c"
# ## 真服务器，M/G/1
#
# 轮到第 01 课的引擎了：`bench-30m`，`max_batch_size=1`，泊松到达。回答有两种长度，五个里有一个是长的，所以 $C^2$ 不为 0。
# 每个负载各做四件事：**马上**标定两种服务时间；由它们的矩算 P–K；拿同一串到达、从标定样本里抽服务时间做仿真；
# 然后实测。服务时间是时间线上从 `scheduled` 到 `finished` 的一段，即占着服务器的时间。
#
# 几十个请求的均值本身就是随机数。「such short runs」一行说的是：这么短的运行，十次里有九次落在哪里。
# 先看这个范围，再评判理论。

# %% [markdown] key="real" lang="en" partner="c1e97547"
# ## The real server, as M/G/1
#
# Now the engine of lesson 01: `bench-30m`, `max_batch_size=1`, Poisson arrivals. Answers have two lengths,
# one in five is long, so $C^2$ is not 0. At each load four things happen: both service times are calibrated
# **right then**; P–K is worked out from their moments; the same arrivals are simulated with service times
# drawn from the calibrated ones; and then the server is measured. The service time is the stretch of the
# timeline from `scheduled` to `finished`, the time that keeps the server busy.
#
# The mean of some dozens of requests is itself a random number. "Such short runs" says where nine of ten
# runs as short as this one end up. Look at that range before you judge the theory.

# %% key="real-code"
engine = load_engine("transformers", "bench-30m")
engine.warm_up()
lengths = TwoLengths(short=1, long=12, long_share=0.2)  # tokens
columns = []
for seed, load in enumerate((0.4, 0.6, 0.8)):
    columns.append(await queue_columns(engine, lengths, load, seconds=5.0, seed=seed))
    print(columns[-1])

# %% key="real-figure"
loads = [column.load for column in columns]
fig, ax = figure("The real server beside M/G/1", "load (share of time busy)", "mean wait (ms)", xticks=loads)
low, high = np.transpose([column.spread for column in columns]) * 1e3
ax.fill_between(loads, low, high, color="#DDDDDD", label="9 of 10 runs as short as this")
ax.plot(loads, [column.theory * 1e3 for column in columns], label="theory (endless run)", **THEORY)
styles = {
    "measured": MEASURED,
    "simulated": SIMULATED,
    "at_run_speed": {"color": COLOURS["green"], "marker": "x"},
}
for name, style in styles.items():
    waits = [getattr(column, name).waits.mean() * 1e3 for column in columns]
    ax.plot(loads, waits, linestyle="", label=name.replace("_", " "), **style)
ax.set_ylim(0)
_ = ax.legend()

# %% [markdown] key="real-reading" lang="zh" partner="53719296"
# 误差有三个来源，各有各的数。**抽样**：理论与实测之差，先和灰带比；均值靠罕见的拥堵撑着，
# 所以短的运行多半在理论线下方，仿真点也一样。**漂移**：`drift` 说这次运行比标定慢了多少，
# 「回到那 5%」一节的放大器把它变成等待的误差；换上运行自己的服务时间再仿真一遍（`at the run's speed`，图上的叉），这部分就没有了。
# **交接**：`hand-over` 是本可以开始到真正开始之间的时间，线程切换加事件循环，公式里没有它，剩下的误差多半是它。

# %% [markdown] key="real-reading" lang="en" partner="4008515d"
# The error has three sources, and each has its number. **Sampling**: compare the gap between theory and
# measurement with the grey band first; the mean is carried by rare jams, so most short runs lie below the
# line, and so do their simulated twins. **Drift**: `drift` says how much slower the run was than the
# calibration, and the multiplier of the section on the 5% turns it into an error of the wait; a simulation
# with the run's own service times (`at the run's speed`, the crosses) is free of it. **Hand-over**: `hand-over` is the
# time from when a request could have started to when it did, thread switch and event loop. No formula has
# it, and it is most of what is left.

# %% [markdown] key="trap" lang="zh" partner="6b5c09ea"
# ### 陷阱：拿端到端延迟当服务时间
#
# 监控里最容易拿到的是端到端延迟。把它当服务时间代进公式，会怎么样？

# %% [markdown] key="trap" lang="en" partner="417f257e"
# ### The trap: calibrating from end-to-end latency
#
# The number that is easiest to come by is end-to-end latency. What if it is put into the formula as the
# service time?

# %% key="trap-code"
for column in columns:
    run = column.measured
    print(f"load {column.load}: measured mean wait {run.waits.mean() * 1e3:.0f} ms")
    for stamps, seconds in (("scheduled", run.services), ("arrival", run.sojourns)):
        try:
            wait = mg1_mean_wait(column.rate, seconds.mean(), (seconds**2).mean())
            print(f"  {stamps} to finished as the service: predicted {wait * 1e3:.0f} ms")
        except InvalidSetting as refusal:
            print(f"  {stamps} to finished as the service: {refusal}")

# %% [markdown] key="trap-reading" lang="zh" partner="d15b7f0b"
# 取对了时间戳的那一行，偏差用灰带和漂移就解释得了；取错的那一行差得没边，或者干脆被拒绝。
# 等待是答案，却被当成原料又喂了进去。$\lambda$ 乘以停留时间，按利特尔法则是系统里的**人数**，不是负载，它完全可以大于 1。
# 下结论说「排队论不适用于大模型」之前，先看看服务时间取自哪两个时间戳。

# %% [markdown] key="trap-reading" lang="en" partner="03287c60"
# With the right stamps the prediction is off by what the grey band and the drift explain; with the wrong
# ones it is off beyond all measure, or refused. The wait is the answer, and here it was fed back in as an ingredient.
# $\lambda$ times the time in system is, by Little's law, the **number** in the system and not the load;
# nothing keeps it below 1. Before anybody concludes that "queueing theory does not apply to language
# models", look at the two stamps that the service time came from.

# %% [markdown] key="breaks" lang="zh" partner="084ae278"
# ## 什么会让它失灵
#
# **成群到达。** 一个用户的操作触发一串请求，泊松就不成立了。下面平均每群 4 个，群的大小服从几何分布，负载只有 0.7。
# Kingman 的上界对任何独立的到达间隔都成立；Allen–Cunneen 近似只在高负载时准。
#
# **没有稳态。** 公式讲的是无限长的平稳运行。高峰一小时负载 1.1，那一小时里队列按比例增长，多久才能消完，要看高峰之后还剩多少余量。
#
# **服务时间取决于人数。** 一打开批处理，8 个一起做，用不了做 1 个的 8 倍时间，P–K 的前提就没了。那是第 04 课和第 06 课的事。

# %% [markdown] key="breaks" lang="en" partner="e6885157"
# ## What breaks it
#
# **Crowds.** One click of a user sets off several requests, and arrivals are not Poisson. Below they come in
# groups of 4 on average, of geometric size, at a load of only 0.7. Kingman's upper bound holds for any
# independent gaps between arrivals; Allen and Cunneen's approximation is good only at high load.
#
# **No steady state.** The formulas speak of an endless, settled run. In a rush hour at load 1.1 the queue
# grows in proportion to time, and how soon it is gone again depends on what is left after the rush.
#
# **Service that depends on the crowd.** With batching, 8 requests don't take 8 times as long as 1, and P–K
# has lost its ground. That is the matter of lessons 04 and 06.


# %% key="breaks-code"
def in_groups(arrivals, services):
    gaps = np.diff(arrivals, prepend=0.0)
    leads = (
        streams(len(arrivals), "groups")["groups"].random(len(arrivals)) < 1 / 4
    )  # the rest follow at once
    return fast_queues.fifo(np.cumsum(np.where(leads, 4 * gaps, 0.0)), services)


load, gap_scv = 0.7, 2 * 4 - 1  # C^2 of the gaps of geometric groups of mean size 4
found = over_days(lambda run: settled(run.waits).mean(), days(in_groups, load, exponential, 200_000))
print(f"simulated, in groups of 4:    {found.low:.2f} to {found.high:.2f} mean service times")
print(f"M/M/1, as if they came singly: {mg1_mean_wait(load, 1.0, 2.0):.2f}")
print(f"Allen-Cunneen, approximately:  {ggc_wait_approximation(load, 1.0, 1, gap_scv, 1.0):.2f}")
print(f"Kingman, no more than:         {gg1_wait_bound(load, 1.0, gap_scv / load**2, 1.0):.2f}")

# %% [markdown] key="exercises" lang="zh" partner="789df4a1"
# ## 练习
#
# 写完运行单元格，`check` 会给出最小的失败例子和可能的原因。`hint("03.1")` 给提示。
#
# **03.1** 一台服务器，先到先服务。每位顾客在服务开始之前等多久？返回列表。

# %% [markdown] key="exercises" lang="en" partner="a89ab7fa"
# ## Exercises
#
# Run the cell when you have written your answer: `check` shows the smallest case that fails and the likely
# cause. `hint("03.1")` gives a hint.
#
# **03.1** One server, first come, first served. How long does each customer wait before service? Return a
# list.


# %% key="ex1" exercise="03.1" tags=["nbval-check-output"]
def fifo_waits(arrivals, services):
    raise NotImplementedError


check("03.1", fifo_waits)


# %% key="ex1-solution" solution="03.1" tags=["nbval-check-output"]
def fifo_waits(arrivals, services):
    waits, free = [], 0.0
    for arrival, service in zip(arrivals, services, strict=True):
        waits.append(max(0.0, free - arrival))
        free = max(free, arrival) + service
    return waits


check("03.1", fifo_waits)

# %% [markdown] key="exercise2" lang="zh" partner="a642ac07"
# **03.2** Erlang C：`servers` 台服务器共用一队，到达负载 `offered`（到达率乘平均服务时间，小于 `servers`），
# 必须等的比例是多少？200 台也要算得出来。

# %% [markdown] key="exercise2" lang="en" partner="b8ec0147"
# **03.2** Erlang's C: one line for `servers` servers, offered load `offered` (arrival rate times mean service
# time, below `servers`). What share must wait? It has to work for 200 servers as well.


# %% key="ex2" exercise="03.2" tags=["nbval-check-output"]
def erlang_c(offered, servers):
    raise NotImplementedError


check("03.2", erlang_c)


# %% key="ex2-solution" solution="03.2" tags=["nbval-check-output"]
def erlang_c(offered, servers):
    lost = 1.0
    for k in range(1, servers + 1):
        lost = offered * lost / (k + offered * lost)
    return lost / (1 - offered / servers * (1 - lost))


check("03.2", erlang_c)

# %% [markdown] key="exercise3" lang="zh" partner="2878f622"
# **03.3** 泊松到达，`services` 是实测的服务时间（秒）。长期平均等待是多少秒？没有稳态时返回 `math.inf`。

# %% [markdown] key="exercise3" lang="en" partner="f39c6c06"
# **03.3** Poisson arrivals; `services` are measured service times (s). What is the long-run mean wait, in
# seconds? Return `math.inf` where there is no steady state.


# %% key="ex3" exercise="03.3" tags=["nbval-check-output"]
def mean_wait(rate, services):
    raise NotImplementedError


check("03.3", mean_wait)


# %% key="ex3-solution" solution="03.3" tags=["nbval-check-output"]
def mean_wait(rate, services):
    load = rate * np.mean(services)
    return rate * np.mean(np.square(services)) / (2 * (1 - load)) if load < 1 else np.inf


check("03.3", mean_wait)

# %% [markdown] key="exercise4" lang="zh" partner="e7efa680"
# **03.4** 一台逐个处理的服务器，一次运行的五列时间戳（秒）。它每秒最多能处理多少个请求？

# %% [markdown] key="exercise4" lang="en" partner="b08434af"
# **03.4** A server of one request at a time, and five columns of stamps (s) from a run. How many requests per
# second can it do at most?


# %% key="ex4" exercise="03.4" tags=["nbval-check-output"]
def capacity(arrival, scheduled, first_token, finished, completed):
    raise NotImplementedError


check("03.4", capacity)


# %% key="ex4-solution" solution="03.4" tags=["nbval-check-output"]
def capacity(arrival, scheduled, first_token, finished, completed):
    return 1 / np.mean(np.subtract(finished, scheduled))


check("03.4", capacity)

# %% [markdown] key="exercise5" lang="zh" partner="3f46ac1c"
# **03.5** 共用一队，指数服务时间，平均 `mean_service` 秒。要让 P99 等待不超过 `limit` 秒，最少几台服务器？
# 可以调用你的 `erlang_c`。`judge` 随后用仿真裁决你的台数，也裁决少一台行不行。

# %% [markdown] key="exercise5" lang="en" partner="05cb92ca"
# **03.5** One line, exponential services of `mean_service` seconds on average. What is the smallest number of
# servers whose P99 wait is at most `limit` seconds? You may call your `erlang_c`. Then `judge` lets the
# simulation try your number, and one server fewer.


# %% key="ex5" exercise="03.5" tags=["nbval-check-output"]
def servers_needed(rate, mean_service, limit):
    raise NotImplementedError


check("03.5", servers_needed)


# %% key="ex5-solution" solution="03.5" tags=["nbval-check-output"]
def servers_needed(rate, mean_service, limit):
    servers = int(rate * mean_service) + 1
    while erlang_c(rate * mean_service, servers) * np.exp(-(servers / mean_service - rate) * limit) > 0.01:
        servers += 1
    return servers


check("03.5", servers_needed)

# %% key="judge"
print(judge(servers_needed))

# %% key="close"
engine.shutdown()

# %% [markdown] key="summary" lang="zh" partner="2f248607"
# ## 星期一怎么做
#
# 1. 服务时间取 `scheduled` 到 `finished`，算出 $E[S]$、$C^2$ 和 $\rho$；别碰端到端延迟。
# 2. 利用率的余量不是延迟的余量：流量每多 1%，等待多百分之 $1/(1-\rho)$。预测旁边写上误差。
# 3. 先砍长短不齐：给 `max_tokens` 设上限，把超长请求分流。
# 4. 再合并队伍，按 P99 用 Erlang C 定台数，用仿真复核，然后才是买机器。
# 5. 知道长度时让短的先走，同时盯住最长的那 1%。

# %% [markdown] key="summary" lang="en" partner="89bc7e1a"
# ## What to do on Monday
#
# 1. Take service times from `scheduled` to `finished`, and work out $E[S]$, $C^2$ and $\rho$; keep
#    end-to-end latency out of it.
# 2. Headroom in utilization is no headroom in latency: each 1% of traffic adds $1/(1-\rho)$ percent to the
#    wait. Quote predictions with their error.
# 3. Cut unevenness first: a limit on `max_tokens`, other machines for the very long.
# 4. Then pool the lines, choose the number of servers for P99 by Erlang's C, check it by simulation, and
#    only then buy.
# 5. Where lengths are known, let the short ones go first, and keep an eye on the longest 1%.

# %% [markdown] key="references" lang="zh" partner="9b9d9f24"
# ## 参考文献
#
# - A. K. Erlang, *Solution of some problems in the theory of probabilities of significance in automatic
#   telephone exchanges*, 1917。Erlang B 和 C。
# - F. Pollaczek, *Über eine Aufgabe der Wahrscheinlichkeitstheorie*, 1930；A. Khinchine, *Mathematical theory
#   of a stationary queue*, 1932。M/G/1 的平均等待。
# - D. V. Lindley, *The theory of queues with a single server*, 1952。练习 03.1 的递推。
# - J. F. C. Kingman, *Some inequalities for the queue GI/G/1*, 1962。上界。
# - L. Kleinrock, *Queueing Systems, Volume I: Theory*, 1975。
# - M. Harchol-Balter, *Performance Modeling and Design of Computer Systems*, 2013。PS、SJF、SRPT 一章不落。
# - P. Patel 等, *Splitwise: Efficient Generative LLM Inference Using Phase Splitting*, ISCA 2024。
#   文中的 Azure 流量随它公开。

# %% [markdown] key="references" lang="en" partner="decd61d2"
# ## References
#
# - A. K. Erlang, *Solution of some problems in the theory of probabilities of significance in automatic
#   telephone exchanges*, 1917. Erlang's B and C.
# - F. Pollaczek, *Über eine Aufgabe der Wahrscheinlichkeitstheorie*, 1930; A. Khinchine, *Mathematical theory
#   of a stationary queue*, 1932. The mean wait in M/G/1.
# - D. V. Lindley, *The theory of queues with a single server*, 1952. The recursion of exercise 03.1.
# - J. F. C. Kingman, *Some inequalities for the queue GI/G/1*, 1962. The upper bound.
# - L. Kleinrock, *Queueing Systems, Volume I: Theory*, 1975.
# - M. Harchol-Balter, *Performance Modeling and Design of Computer Systems*, 2013. Has all of PS, SJF and SRPT.
# - P. Patel et al., *Splitwise: Efficient Generative LLM Inference Using Phase Splitting*, ISCA 2024. The
#   Azure traffic in the text was published with it.
