"""Word lists and sentence templates for hay.py, written for this project: towns, people, and fourteen themes."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    """Split a list of words at its bars, or at its blanks where it has none."""
    return text.split("|" if "|" in text else None)


_STARTS = _words(
    "Alder Ambel Arken Balm Birk Bram Brin Cald Carn Corr Cray Darn Drum Dunn Eld Esk Fenn Foss Garl Glan Hather Hol "
    "Inger Ivel Jarn Kell Kest Lang Lodd Marl Mell Nars Norr Oaken Orm Pell Penn Quarl Rath Rush Scarl Sell Stann Tarn "
    "Thorl Ull Varn Wend Yarl Zell"
)
_ENDS = _words(
    "bridge by combe dale den field gate ham holt hurst leigh low mere mouth ness stead stoke thorpe ton wick wold "
    "worth bury fell"
)
TOWNS = tuple(start + end for start in _STARTS for end in _ENDS if not (start + end[0]).endswith(end[0] * 3))
GIVEN = tuple(
    _words(
        "Abel Agnes Alma Anselm Barbara Basil Beatrice Bertram Cecily Clement Conrad Cora Daphne Dorothy Edith Edmund "
        "Elsie Emeric Flora Gideon Greta Harold Hester Hilda Hugo Irma Ivor Jasper Josiah Judith Lambert Leonora "
        "Lydia Magnus Mabel Martha Matilda Nathan Nora Octavia Osbert Percy Phoebe Quentin Rosamund Rufus Selma Silas "
        "Thea Tobias Ursula Victor Wilfred Winifred"
    )
)
SURNAMES = tuple(
    _words(
        "Abbotsley Ashdown Bagnall Barrowby Bickerton Brack Cattermole Chidlow Coppard Crabbe Dimmock Dorrell Ebbs "
        "Entwhistle Fairbrass Farthing Flitch Gaskin Gedling Goodspeed Hackett Hembrow Hoskin Inchbald Jessop Keddle "
        "Kindersley Lambkin Larkby Loveday Mattock Merridew Mossop Nettleship Nunn Oakshott Orrell Pargeter Peverell "
        "Pinnock Quill Rackham Rendle Sallow Satterley Shipton Skelhorn Spinks Tapscott Thistlewood Tranter Twyford "
        "Umpleby Varley Wadlow Wetherell Whybrow Winterborne Yapp Yelland"
    )
)
RIVERS = _words(
    "Ambrel Arrock Brede Callow Corrin Darrent Ember Fallow Garrel Hesper Ketter Larrow Mardle Nidder Orrin Pallet "
    "Quenny Rindle Sarrow Tessel Umber Vennet Wharrow Yaddle"
)
WORDS = {
    "month": _words("January February March April May June July August September October November December"),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "few": _words("two three four five six seven eight nine ten eleven twelve"),
    "colour": _words("red green blue yellow white black grey brown crimson purple"),
    "adj": _words(
        "broad bright careful cheerful cold crooked damp deep faded fine gentle great heavy hidden little long "
        "low modest narrow new patient plain quiet rough sandy small solid steep strange tall windy worn"
    ),
    "crop": _words(
        "barley beans buckwheat cabbages carrots flax hay hops leeks lentils linseed millet mustard oats onions "
        "parsnips peas potatoes pumpkins rye spelt turnips wheat"
    ),
    "fruit": _words(
        "apples blackberries cherries chestnuts currants damsons figs gooseberries hazelnuts medlars mulberries "
        "pears plums quinces raspberries strawberries walnuts"
    ),
    "trade": _words(
        "basket makers|blacksmiths|boat builders|brewers|brick makers|brush makers|carpenters|charcoal burners|"
        "clock makers|coopers|dyers|fishermen|glaziers|glovers|hatters|masons|millwrights|paper makers|potters|"
        "rope makers|saddlers|shepherds|tailors|tanners|thatchers|tinsmiths|weavers|wheelwrights"
    ),
    "thing": _words(
        "barrel|basket|bellows|bench|brass kettle|bucket|candlestick|cartwheel|coil of rope|copper pan|cradle|"
        "drum|ledger|fiddle|grindstone|hand cart|hay rake|horse collar|ladder|lantern|leather purse|looking glass|map|"
        "milk churn|mortar|pair of scales|pewter jug|plough|saddle|sack of nails|ship's bell|spade|spinning wheel|"
        "stone jar|stove|tin whistle|toolbox|trunk|wooden clock"
    ),
    "creature": _words(
        "badgers|bats|bitterns|blackbirds|buzzards|curlews|dormice|dragonflies|finches|foxes|frogs|geese|"
        "grebes|hares|hedgehogs|herons|kingfishers|lapwings|moles|moths|newts|nightjars|otters|owls|partridges|plovers|"
        "rooks|snipe|stoats|swallows|swifts|toads|trout|voles|wagtails|woodcock|wrens"
    ),
    "stuff": _words(
        "canvas|cast iron|clay|dressed stone|flint|granite|larch|limestone|pitch pine|red brick|rubble|"
        "sandstone|seasoned oak|slate|tarred felt|tin plate|wrought iron|yellow brick"
    ),
    "stone": _words(
        "flint|gneiss|granite|gritstone|greywacke|limestone|marble|marl|porphyry|sandstone|schist|slate|tuff"
    ),
    "house": _words(
        "the almshouse|the chapel|the corn hall|the gate house|the granary|the guild hall|the infirmary|"
        "the malt house|the moot hall|the old chandlery|the reading room|the rectory|the tithe barn|the toll house|"
        "the town hall|the tower"
    ),
    "place": _words(
        "the almshouse|the chandler's yard|the churchyard|the common|the corn hall|the cross roads|the drying "
        "green|the gate house|the granary|the guild hall|the horse pond|the lime walk|the lower meadow|the malt house|"
        "the north wall|the old well|the pound|the reading room|the ropewalk|the sheep wash|the smithy|the south gate|"
        "the tannery|the tithe barn|the toll house|the upper field|the wash house|the water stairs|the weigh house|"
        "the weir"
    ),
    "wind": _words("north east south west north-east north-west south-east south-west"),
    "tune": _words("march|hornpipe|waltz|polka|round|lullaby|reel|hymn|shanty|jig"),
}
THINGS, FRUIT, HOUSES = WORDS["thing"], WORDS["fruit"], WORDS["house"]
THEMES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # the mill
        (
            "The mill at {town} was built of {stone} in {year}, where the {river} drops {few} feet over a {adj} ledge.",
            "In {year} {person} bought the {adj} mill at {town} and the {few} cottages beside it.",
            "{town} has had a mill on the {river} since {year}, though the wheel has been renewed {few} times.",
        ),
        (
            "It ground {crop} in winter and {crop2} after the harvest, {n} sacks in an ordinary week.",
            "The miller took one sack in {few} for himself, which the growers of {crop} in {other} thought too many.",
            "{crop_} came by cart from {n} farms, most of it on a {day}, and stood in {house} until its turn.",
        ),
        (
            "{person} kept the accounts in a {colour} book and never lost a page of its {n} leaves.",
            "The stones were dressed every {few} weeks by {person2}, who walked over from {other} with a {thing}.",
            "A {thing} hung by the door, and whoever came for {crop} struck it {few} times to be heard.",
        ),
        (
            "When the {river} froze in {month} {year2}, the {trade} of the town carried water to {place} by hand.",
            "After a flood in {year2} the floor was raised by {few} courses of {stuff}.",
            "Since {year2} the wheel has turned only on the first {day} of {month}, for visitors and {creature}.",
        ),
    ),
    (  # the lake
        (
            "Above {town} lies a {adj} lake, {n} paces long, which the {river} enters through reeds.",
            "The lake of {town} was made in {year}, when {person} dammed the {river} with {stuff}.",
            "Nobody in {town} agrees how deep the lake is; {person} let down {n} feet of line and found no bottom.",
        ),
        (
            "In {month} its water is {colour} in the morning and {colour2} at night, and {creature} gather by {place}.",
            "{creature_} nest on its {wind} shore, and {creature2} are seen there in {month}.",
            "On its {wind} side stands a hut of {stuff}, let to {trade} for {n} crowns a year.",
        ),
        (
            "{person2} rows across every {day} with letters, a {thing} and whatever {fruit} are ripe.",
            "Boys from {other} swim out to the {few} rocks, and are told every {month} not to.",
            "A race of {few} boats is held in {month}; in {year2} it was won by {person2} by the length of a {thing}.",
        ),
        (
            "The ice of {year2} bore {n} people, {few} horses and a stall that sold baked {fruit}.",
            "In {year2} the {trade} asked for a landing stage of {stuff}, and after {few} meetings they got it.",
            "A {colour} buoy marks where a {thing} was lost in {year2}; it has been looked for {few} times.",
        ),
    ),
    (  # the school
        (
            "The school in {town} opened in {month} {year} with {n} children and {few} benches.",
            "{person} founded the school of {town} in {year}, in a {adj} room above {house}.",
            "Until {year} the children of {town} walked to {other}, where the school had a roof of {stuff}.",
        ),
        (
            "Each child brought a log in winter and a basket of {fruit} in {month}.",
            "Sums were taught with {crop}, and spelling with a {thing} on which the letters were painted {colour}.",
            "Lessons ended at {few} on a {day}, so that the older ones could help with the {crop}.",
        ),
        (
            "{person2} taught there for {n2} years and could name every pupil of them.",
            "The inspector of {year2} praised the {adj} handwriting and found fault with the {thing}.",
            "A map of the {river}, drawn by {person2} from memory, covers the {wind} wall.",
        ),
        (
            "Of the class of {year2}, {few} became {trade} and {few2} went to sea.",
            "A prize of {n} crowns is given each {month} for the best essay on {creature}.",
            "The bell was bought from the {trade} of {other} in {year2}, for {n} crowns and a {thing}.",
        ),
    ),
    (  # the bridge
        (
            "The bridge at {town} crosses the {river} on {few} arches of {stone}.",
            "Before {year} there was no bridge at {town}, only {few} stepping stones and a rope.",
            "{person} drew the bridge of {town} in {year}, on the back of a bill for {crop}.",
        ),
        (
            "It cost {big} crowns, of which the {trade} paid a third and asked for no thanks.",
            "The {wind} parapet was pulled down by a wagon of {crop} and rebuilt in {stone}.",
            "{few_} masons worked on it from {month} to {month2}, and slept in {house}.",
        ),
        (
            "A toll of one crown for {n} sheep was asked until {year2}, when {person2} left the gate open.",
            "Carts laden with {stuff} must cross one at a time, and {person2} has a {thing} to signal with.",
            "In {month} {year2} the water stood {n} inches over the road, and {creature} sat on the railing.",
        ),
        (
            "Under the {adj} middle arch hangs a {thing}, and nobody knows why the {trade} put it there in {year2}.",
            "{creature_} live beneath the {wind} end, where the mortar of {year2} has fallen out.",
            "On the {colour} milestone beside it the distance to {other} is given as {n} furlongs.",
        ),
    ),
    (  # the market
        (
            "{town} holds its market on the {adj} square every {day}, and has done so since {year}.",
            "The right to a market was granted to {town} in {year}, against a yearly gift of {n} baskets of {fruit}.",
            "On market days {n} stalls stand in {town}, from {place} to the steps of {place2}.",
        ),
        (
            "{crop_} and {fruit} fill the {wind} side, {trade} and their goods the other.",
            "The price of {crop} is cried at {few} o'clock, and that of {fruit} when the bell of {place} has rung.",
            "A stall of {person}'s sells nothing but {crop} and, in {month}, a few {adj} {fruit}.",
        ),
        (
            "{person2} once sold a {thing} there for {n} crowns and bought it back before dark for {few}.",
            "In {year2} a sack of {crop} went for {few} crowns, and the {trade} of {other} came to complain.",
            "Whoever gives short weight must stand by {place} with a {thing} until {few} people have laughed.",
        ),
        (
            "Stray {creature} are kept in a pen of {stuff}, and cost their finder nothing until {month}.",
            "When it rains from the {wind}, all move under the {adj} roof that {person2} paid for in {year2}.",
            "The last cart leaves for {other} at {few}, and the {trade} sweep up by the light of a {thing}.",
        ),
    ),
    (  # the lock and its boats
        (
            "Barges reached {town} in {year}, when the lock on the {river} was finished in {stuff}.",
            "The lock below {town} lifts a boat by {few} feet and takes {n} minutes to fill.",
            "Between {town} and {other} the {river} has {few} locks, and the {adj} one at {place} is the oldest.",
        ),
        (
            "Boats bring {stuff} up and take {crop} and {fruit} down, about {n} of them in a good {month}.",
            "The gates are of {stuff}, hung by {trade} who were paid in {crop}.",
            "{person} counted {n} barges in {month} {year2}, most of them laden with {stuff}.",
        ),
        (
            "A horse called after a {thing} drew the boats of {person2} for {n2} years.",
            "In the cottage live {person2}, {few} children and a number of {creature}.",
            "The keeper's garden has {fruit} on the {wind} wall and a {thing} that tells the weather.",
        ),
        (
            "In {year2} a barge sank with {n} sacks of {crop}, and {creature} grew fat that {month}.",
            "Skippers leave a {thing} at {place} when they owe for more than {few} passages.",
            "No boat passes on a {day} in {month}, when the {trade} clear the weed.",
        ),
    ),
    (  # the orchard
        (
            "The {adj} orchard behind {place} in {town} was planted with {fruit} in {year}.",
            "{person} of {town} grows {n} kinds of {fruit} on land that others used for {crop}.",
            "{town} is known in the valley of the {river} for its {fruit}, which ripen in {month}.",
        ),
        (
            "The trees stand {few} paces apart, with {crop} sown between them against the wind from the {wind}.",
            "Pickers come from {other} and are paid {few} crowns for a basket, and a {thing} for the fastest.",
            "Frost in {month} {year2} spared {n} trees, all of them near {place}.",
        ),
        (
            "{creature_} take the {fruit} at the top, and nobody grudges them more than {n} baskets.",
            "A press of {stuff}, made by {person2}, fills {n} bottles in an hour.",
            "What is not sold by {month} is dried in {house}, on {few} trays of {stuff}.",
        ),
        (
            "{person2} grafted a {colour} sort in {year2}, which the {trade} will not touch.",
            "The gate is closed with a {thing}, which keeps out {creature} but not the children of {other}.",
            "At the supper in {month} {n} guests sit under the {adj} trees and sing a {tune}.",
        ),
    ),
    (  # the railway
        (
            "The branch line from {other} reached {town} in {month} {year}, over {few} viaducts of {stone}.",
            "{town} station lies {n} paces from the houses, since {person} would not sell {place}.",
            "{few_} trains a day stopped at {town} in {year}; on a {day} there was one more for the {trade}.",
        ),
        (
            "The first engine was {colour}, with {n} on its side, and was welcomed with a {tune} and boiled {crop}.",
            "Its goods shed, of {stuff}, held {n} crates of {fruit} in a good year.",
            "Tickets to {other} cost {few} crowns, and a {thing} travelled free.",
        ),
        (
            "{person2} was station master for {n2} years and set the clock by the {creature}.",
            "Sheep, {crop} and {stuff} went down the line, and {trade} with their bags came up it.",
            "In the snow of {year2} a train stood for {few} days at {place}, and its {n} passengers played cards.",
        ),
        (
            "The line was closed in {year2}; its bed is a {adj} path where {creature} cross.",
            "A {thing} from the waiting room is shown in {house} on the first {day} of {month}.",
            "Of the {few} signal boxes one is a house now, painted {colour} by {person2}.",
        ),
    ),
    (  # the fire
        (
            "The fire of {month} {year} began in {town} at {house}, where {crop} had been stored damp.",
            "On a {day} in {year} sparks from {house} set {n} roofs of {town} alight.",
            "{town} burned in {year}, all but {few} houses of {stuff} and the {adj} wall by {place}.",
        ),
        (
            "The {trade} made a chain from the {river} and passed {n} buckets in an hour.",
            "{person} rode to {other} for help on a horse that had never gone faster than a {thing}.",
            "The wind turned to the {wind} about {few}, and the {creature} came back before the people did.",
        ),
        (
            "Nobody died; {person2} lost {n} books, a {thing} and all the {fruit} of that year.",
            "A collection in {other} brought {big} crowns, {few} blankets and a {colour} coat.",
            "{person2} was found asleep in {house}, with a {thing} on either side.",
        ),
        (
            "New houses had to be of {stuff}, with {few} feet between them, by an order of {month} {year2}.",
            "The engine bought in {year2} needs {n2} people to pump, and the {trade} still practise on a {day}.",
            "Every {month} a {tune} is played at {place}, and a {adj} lamp is lit for the {trade}.",
        ),
    ),
    (  # the library
        (
            "The library of {town} began in {year} with {n} volumes that {person} left to the {trade}.",
            "{person} opened a {adj} library in {town} in {year}, in {house}, and lent the first book to a child.",
            "In {town} books are kept in {house}, a building of {stone} with {few} windows to the {wind}.",
        ),
        (
            "Works on {creature} are read most, those on {crop} least, and {n} have never been opened.",
            "A reader may take {few} books home, or one and a {thing}.",
            "Fines are paid in {fruit}, {few} for a week, and eaten by the committee in {month}.",
        ),
        (
            "{person2} has catalogued {n} of them by colour, beginning with {colour}.",
            "The {colour} catalogue was written by {person2}, who left out whatever was said against {trade}.",
            "Among its treasures are a {thing} and a letter on {crop} dated {month} {year2}.",
        ),
        (
            "A society of {trade} meets there on a {day} and has argued about {creature} since {year2}.",
            "In {year2} a reader from {other} brought back a book that was {n2} years late.",
            "The reading lamp, of {stuff}, was given by the {trade} of {other} in {year2}.",
        ),
    ),
    (  # the bakery
        (
            "{person} has the {adj} bakery in {town}, whose oven of {stone} was first lit in {year}.",
            "The bread of {town} is made with {crop} and baked on stones from the {river}.",
            "Bakers in {town} begin at {few}, when the {creature} are still out by {place}.",
        ),
        (
            "On a {day} there are {n} loaves, and in {month} a cake with {fruit} as well.",
            "A loaf with {fruit} costs {few} crowns, and {trade} have theirs for one less.",
            "The {colour} van goes round by {other} and {place}, and comes home with eggs and a {thing}.",
        ),
        (
            "{person2} carried the dough to {place} and back when the old oven cracked in {year2}.",
            "The recipe is written inside the door and names {n2} things, {crop} among them.",
            "In the dear year of {year2} {crop} was mixed with {crop2}, and {n} people signed a protest.",
        ),
        (
            "Its sign, a {colour} {thing}, was carved by {person2} and is stolen every {month}.",
            "The chimney is swept in {month} by {trade}, and {creature} move in the week after.",
            "What is left at {few} o'clock goes to {place}, for whoever is there with a {thing}.",
        ),
    ),
    (  # the quarry
        (
            "The quarry above {town} has given {stone} since {year}, and lies open to the {wind}.",
            "{person} of {town} found {stone} in {year} while digging a hole for a {thing}.",
            "From {year} on {n2} people of {town} worked in the {adj} quarry by {place}.",
        ),
        (
            "Blocks went down on {few} sledges to the {river}, and from there to {other}.",
            "The {trade} took the small pieces, and {n} cartloads made the road to {place}.",
            "At noon on a {day} a {thing} was beaten, and {few} charges were fired.",
        ),
        (
            "{person2} broke the record in {month} {year2} with {n} blocks, and was given a {thing}.",
            "A strike in {year2} lasted {few} weeks and won a fire, dry {crop} and a {adj} shed.",
            "In its {wind} face the shells of {few} creatures can be seen, which {person2} drew in {colour} ink.",
        ),
        (
            "It is flooded now, and {creature} and {creature2} have it to themselves until {month}.",
            "The crane was sold to {other} in {year2} for {big} crowns and a {thing}.",
            "In {house} a model of it stands, {few} feet wide, made of {stuff} by {person2}.",
        ),
    ),
    (  # the band
        (
            "The band of {town} was formed in {year} by {few} {trade} and a boy with a {thing}.",
            "{person} leads the band of {town}, which practises in {house} on a {day}.",
            "A {adj} {tune} called after {town} was written by {person} in {year}.",
        ),
        (
            "It owns {n2} instruments, most of them {colour} with age, and one that nobody can play.",
            "Its coats are {colour} with {colour2} collars, sewn by the {trade} of {other}.",
            "In {month} it walks to {other} and back, playing a {tune} at {place} and another at {place2}.",
        ),
        (
            "At the contest of {year2} it came {nth} of {n2}, although the {thing} had been left at home.",
            "{person2} has blown the horn since {year2}, and the {creature} by the {river} answer.",
            "The {tune} of {year2} has {n} bars and must be played without a pause for {fruit}.",
        ),
        (
            "Whoever comes late buys {few} pounds of {fruit}, or carries the {thing} home.",
            "Its funds, {n} crowns, are kept at {house} in a {thing}.",
            "When {person2} married in {month}, it played from {few} until the {creature} woke.",
        ),
    ),
    (  # the weather
        (
            "{person} has written down the weather of {town} since {month} {year}, at {few} in the morning.",
            "In {town} rain comes from the {wind}, over {place}, and is seen an hour before it falls.",
            "The {adj} summer of {year} is still spoken of in {town}, when the {river} could be crossed in shoes.",
        ),
        (
            "The wettest {month} brought {n} millimetres, and {creature} were seen in {place}.",
            "Snow lay for {n2} days in {year2}, and {crop} were dug out with a {thing}.",
            "A storm in {month} {year2} took {n} tiles, {few} chimneys and a {thing} that was found in {other}.",
        ),
        (
            "When {creature} fly low over {place}, the {trade} bring in their {crop}.",
            "{person2} reads it from a {thing}, and has been wrong {few} times since {year2}.",
            "Fog fills the valley in {month}, and a {thing} is beaten at {place} to bring the {trade} home.",
        ),
        (
            "The gauge is of {stuff}, stands by {place} and is emptied on a {day}.",
            "{n_} such notebooks, with {colour} covers, are kept for {person2} in {house}.",
            "The cold of {year2} split a wall of {stone}, and {fruit} were not seen again for {few} years.",
        ),
    ),
)  # fmt: skip
NTH = _words("second third fourth fifth sixth seventh eighth ninth")
