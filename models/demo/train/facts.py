"""What the demo model is meant to know: word pairs and capitals, English and Chinese."""

DIGITS_EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS_EN = "twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS_ZH = "零一二三四五六七八九十"


def number_en(n):
    """0..99 in English words: 37 -> thirty-seven."""
    if n < 20:
        return DIGITS_EN[n]
    tens = TENS_EN[n // 10 - 2]
    return tens if n % 10 == 0 else f"{tens}-{DIGITS_EN[n % 10]}"


def number_zh(n):
    """0..99 in Chinese: 37 -> 三十七, 15 -> 十五."""
    if n <= 10:
        return DIGITS_ZH[n]
    tens = "" if n < 20 else DIGITS_ZH[n // 10]
    return tens + "十" + ("" if n % 10 == 0 else DIGITS_ZH[n % 10])


def _pairs(text):
    return [tuple(p.split("=")) for p in text.split()]


COLOURS = _pairs(
    "red=红色 blue=蓝色 green=绿色 yellow=黄色 black=黑色 white=白色 "
    "grey=灰色 brown=棕色 pink=粉色 purple=紫色 orange=橙色 gold=金色"
)
WEEKDAYS = _pairs(
    "Monday=星期一 Tuesday=星期二 Wednesday=星期三 Thursday=星期四 "
    "Friday=星期五 Saturday=星期六 Sunday=星期日"
)
MONTHS = _pairs(
    "January=一月 February=二月 March=三月 April=四月 May=五月 June=六月 July=七月 "
    "August=八月 September=九月 October=十月 November=十一月 December=十二月"
)
ANIMALS = _pairs(
    "cat=猫 dog=狗 bird=鸟 fish=鱼 horse=马 cow=牛 pig=猪 sheep=羊 chicken=鸡 duck=鸭子 "
    "tiger=老虎 lion=狮子 bear=熊 elephant=大象 monkey=猴子 rabbit=兔子 mouse=老鼠 snake=蛇 "
    "frog=青蛙 wolf=狼 panda=熊猫 dragon=龙 turtle=乌龟 whale=鲸鱼"
)

# country, capital, 国家, 首都
CAPITALS = [
    tuple(line.split("|"))
    for line in """China|Beijing|中国|北京
Japan|Tokyo|日本|东京
India|New Delhi|印度|新德里
Thailand|Bangkok|泰国|曼谷
Vietnam|Hanoi|越南|河内
South Korea|Seoul|韩国|首尔
Mongolia|Ulaanbaatar|蒙古|乌兰巴托
Nepal|Kathmandu|尼泊尔|加德满都
Pakistan|Islamabad|巴基斯坦|伊斯兰堡
Bangladesh|Dhaka|孟加拉国|达卡
Indonesia|Jakarta|印度尼西亚|雅加达
Malaysia|Kuala Lumpur|马来西亚|吉隆坡
Philippines|Manila|菲律宾|马尼拉
Cambodia|Phnom Penh|柬埔寨|金边
Laos|Vientiane|老挝|万象
Iran|Tehran|伊朗|德黑兰
Iraq|Baghdad|伊拉克|巴格达
Turkey|Ankara|土耳其|安卡拉
Saudi Arabia|Riyadh|沙特阿拉伯|利雅得
Jordan|Amman|约旦|安曼
Russia|Moscow|俄罗斯|莫斯科
Ukraine|Kyiv|乌克兰|基辅
Poland|Warsaw|波兰|华沙
Germany|Berlin|德国|柏林
France|Paris|法国|巴黎
Spain|Madrid|西班牙|马德里
Portugal|Lisbon|葡萄牙|里斯本
Italy|Rome|意大利|罗马
Greece|Athens|希腊|雅典
Austria|Vienna|奥地利|维也纳
Switzerland|Bern|瑞士|伯尔尼
Belgium|Brussels|比利时|布鲁塞尔
Netherlands|Amsterdam|荷兰|阿姆斯特丹
Denmark|Copenhagen|丹麦|哥本哈根
Norway|Oslo|挪威|奥斯陆
Sweden|Stockholm|瑞典|斯德哥尔摩
Finland|Helsinki|芬兰|赫尔辛基
Iceland|Reykjavik|冰岛|雷克雅未克
Ireland|Dublin|爱尔兰|都柏林
United Kingdom|London|英国|伦敦
Hungary|Budapest|匈牙利|布达佩斯
Romania|Bucharest|罗马尼亚|布加勒斯特
Bulgaria|Sofia|保加利亚|索非亚
Croatia|Zagreb|克罗地亚|萨格勒布
Serbia|Belgrade|塞尔维亚|贝尔格莱德
Canada|Ottawa|加拿大|渥太华
United States|Washington|美国|华盛顿
Mexico|Mexico City|墨西哥|墨西哥城
Cuba|Havana|古巴|哈瓦那
Brazil|Brasilia|巴西|巴西利亚
Argentina|Buenos Aires|阿根廷|布宜诺斯艾利斯
Chile|Santiago|智利|圣地亚哥
Peru|Lima|秘鲁|利马
Colombia|Bogota|哥伦比亚|波哥大
Egypt|Cairo|埃及|开罗
Morocco|Rabat|摩洛哥|拉巴特
Kenya|Nairobi|肯尼亚|内罗毕
Ethiopia|Addis Ababa|埃塞俄比亚|亚的斯亚贝巴
Nigeria|Abuja|尼日利亚|阿布贾
Australia|Canberra|澳大利亚|堪培拉
New Zealand|Wellington|新西兰|惠灵顿""".splitlines()
]
